"""What is made of H = XᵀX before codes are fitted to it: chance correlations shrunk, the diagonal damped."""

from __future__ import annotations

from torch import Tensor


def trust(tokens: int, width: int) -> float:
    """The share of H's correlations that so many tokens can tell in so many channels: n / (n + m), between 0 and 1.

    The sum over n tokens in m channels holds chance correlations besides the true ones, and an error that is spread by those comes
    back on other text. Shrinking with the diagonal as the target (Schäfer and Strimmer 2005, target D) leaves the diagonal alone
    where there is hardly any text, and H where there is plenty. This share is a rule of thumb, not estimated from the data as theirs
    is; lesson 3 shows what it gains at each amount of text.
    """
    return tokens / (tokens + width)


def shrink(hessian: Tensor, share: float) -> Tensor:
    """H [in, in] with all but its diagonal times `share`, in place."""
    diagonal = hessian.diagonal().clone()
    hessian.mul_(share).diagonal().copy_(diagonal)
    return hessian


def damp(hessian: Tensor, damping: float = 0.01) -> Tensor:
    """H with λ = `damping` · mean diagonal added in place (Frantar et al. 2022, section 3.3, step 3); of zeros alone, the identity."""
    diagonal = hessian.diagonal()
    diagonal.add_(damping * diagonal.mean()).masked_fill_(diagonal == 0, 1)
    return hessian
