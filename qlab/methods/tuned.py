"""Tuning a quantized block against the block it came from, by gradient.

After AutoRound (Cheng et al. 2023) and EfficientQAT (Chen et al. 2024).

GPTQ answers for one layer at a time. Here codes, scales, biases and norms of a whole block move together until its output,
on the inputs that the quantized blocks before it produce, comes closest to what the original block made of the original
inputs. What is stored has the same form and the same bits as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qlab.methods.grid import GroupedIntegers, storable
from qlab.support.precision import quick_products

Run = Callable[[dict[str, Tensor], Tensor], Tensor]
"""(parameters by name, inputs [windows, length, hidden]) → the block's output with these parameters."""


# Learning rates: of the codes in steps of the grid, of scales relative to themselves, of what stays unquantized likewise.
CODES, SCALES, REST = 0.01, 2e-3, 2e-3
MEAN_DECAY = 0.95  # of the codes' running mean, which is what is kept: over some twenty steps, what single windows want averages out


class Rounded(torch.autograd.Function):
    """The weights of codes and scales that move: the gradient passes straight through rounding (Bengio et al. 2013).

    One function by hand instead of a chain of PyTorch's: it keeps nothing the size of the weights but `latent`, which is there
    anyway, and rounds again on the way back.
    """

    @staticmethod
    def forward(context: Any, latent: Tensor, log_scale: Tensor, start: GroupedIntegers) -> Tensor:
        """`latent` [out, in] and `log_scale` [out, groups] to weights float32 [out, in]."""
        scale = moved_scale(start, log_scale)
        context.save_for_backward(latent, scale)
        context.start = start
        return nearest(latent, start.bits).view(*scale.shape, -1).sub_(start.zeros[..., None]).mul_(scale[..., None]).view_as(latent)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (latent, scale), start = context.saved_tensors, context.start
        gradient = gradients[0].reshape(*scale.shape, -1)
        whole = nearest(latent, start.bits).view_as(gradient).sub_(start.zeros[..., None])
        to_scale = whole.mul_(gradient).sum(-1) * scale
        beyond = (latent < -0.5) | (latent > 2**start.bits - 0.5)  # pushed out of the grid: only the way back is open
        return (gradient * scale[..., None]).view_as(latent).masked_fill_(beyond, 0), to_scale, None


def nearest(latent: Tensor, bits: int) -> Tensor:
    """The codes that `latent` rounds to, as a new float32 tensor."""
    return latent.detach().round().clamp_(0, 2**bits - 1)


def moved_scale(start: GroupedIntegers, log_scale: Tensor) -> Tensor:
    """The scales as they would be stored: float32 [out, groups] of FP16 precision."""
    return storable(start.scales * log_scale.detach().exp())


class SoftIntegers:
    """A quantized tensor whose codes and scales can move: `latent` [out, in] rounds to the codes, gradients pass straight through."""

    def __init__(self, start: GroupedIntegers, rounded: Tensor) -> None:
        """`rounded` [out, in]: the weights that became these codes."""
        self.start = start
        codes = start.codes.float()
        exact = (rounded.reshape(*start.scales.shape, -1) / start.scales[..., None]).add_(start.zeros[..., None]).view_as(codes)
        self.latent = (codes + exact.sub_(codes).clamp_(-0.45, 0.45)).requires_grad_()  # as far as rounding can have moved it
        self.log_scale = torch.zeros_like(start.scales).requires_grad_()

    def weight(self) -> Tensor:
        """The weights [out, in] at present, with gradients to `latent` and `log_scale`."""
        return Rounded.apply(self.latent, self.log_scale, self.start)

    def finish(self) -> GroupedIntegers:
        """As it is stored."""
        codes = nearest(self.latent, self.start.bits).to(torch.uint8)
        return replace(self.start, codes=codes, scales=moved_scale(self.start, self.log_scale))


def tune(
    run: Run,
    quantized: dict[str, SoftIntegers],
    rest: dict[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    metric: Tensor,
) -> None:
    """Move `quantized` and `rest` in place for up to `steps` batches (inputs, wanted outputs).

    The loss is the squared error e of the output, each token's divided by the mean square of what is wanted there, since the
    norm that reads it divides by the same; half of it as it is, half measured by `metric` M [hidden, hidden], eᵀ·M·e, which
    says how far e moves the model's predictions (qlab.walk.sensitivity). Of the codes their running mean is kept, of all else the last.
    """
    for tensor in rest.values():
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(
        [
            {"params": [soft.latent for soft in quantized.values()], "lr": CODES},
            {"params": [soft.log_scale for soft in quantized.values()], "lr": SCALES},
            {"params": list(rest.values()), "lr": REST},
        ],
        betas=(0.9, 0.99),
        fused=True,  # in place: no temporaries the size of the block
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10) * (1 - step / steps))
    means = [soft.latent.detach().clone() for soft in quantized.values()]
    coarse = all(soft.start.bits <= 4 for soft in quantized.values())  # BF16 could not tell neighbouring codes of 8 bits apart
    for step, (inputs, wanted) in zip(range(steps), batches):
        with quick_products(inputs.device, coarse):
            output = run({f"{name}.weight": soft.weight() for name, soft in quantized.items()} | rest, inputs)
            error = output - wanted
            loss = ((error + error @ metric) * error / 2).mean(-1).div(wanted.square().mean(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        for soft, mean in zip(quantized.values(), means):
            mean.lerp_(soft.latent.detach(), max(1 - MEAN_DECAY, 1 / (step + 1)))
    for soft, mean in zip(quantized.values(), means):
        soft.latent.data.copy_(mean)
    for tensor in rest.values():
        tensor.requires_grad_(False)
