"""Token perplexity of a model, and its distance from a reference on the same windows.

Perplexity follows the usual protocol: consecutive, non-overlapping windows, each token but a window's first predicted
from those before it in the window. Where the tokenizer begins every text with BOS, every window does (qlab.models.texts.windows): models
trained so, Gemma above all, predict nothing sensible without. On small models it drowns in noise and can even improve while the model moves
away from the original, so methods are judged by KL(reference ‖ model), token by token.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qlab.evaluate.kept import Predictor, logits_of
from qlab.methods.grid import rows_at_once
from qlab.support.errors import UserError
from qlab.support.progress import progress

SURE = 0.5  # probability
PARTS = 4  # of a window, and of the probabilities from 0 to 1, by which the distance is told
LARGEST_LOSS = 700.0  # nats a token; e^709 is the largest float, and a model that guesses loses 12


@dataclass(frozen=True)
class Quality:
    """Figures over `tokens` predicted tokens in windows of `window`; standard errors are over windows.

    `perplexity` and `stderr` in the same unit; `kl` in nats a token; `top1` the share of tokens on which model and
    reference agree on the likeliest next token. The rest is None without a reference; `loss_increase` is the mean
    negative log-likelihood less the reference's, paired by window, which is far less noisy than either. `kl_windows` is
    each window's KL, by which two candidates judged on the same windows are compared in pairs.

    The mean KL hides where it comes from: `kl_median`, `kl_p90`, `kl_p99` and `kl_max` are of single tokens. `flips_sure` is the share
    of tokens on which the likeliest one is another, of those that the reference gives at least SURE to its likeliest; None where there
    are none. In PARTS equal parts: `kl_by_place` the mean KL by a token's place in its window, the first tokens first; `kl_by_confidence`
    and `flips_by_confidence`, mean KL and the share of other likeliest tokens, by the probability that the reference gives to its
    likeliest; None for a part without tokens.
    """

    perplexity: float
    stderr: float
    tokens: int
    window: int
    kl: float | None = None
    kl_stderr: float | None = None
    top1: float | None = None
    loss_increase: float | None = None
    loss_increase_stderr: float | None = None
    kl_windows: list[float] | None = None
    kl_median: float | None = None
    kl_p90: float | None = None
    kl_p99: float | None = None
    kl_max: float | None = None
    flips_sure: float | None = None
    kl_by_place: list[float | None] | None = None
    kl_by_confidence: list[float | None] | None = None
    flips_by_confidence: list[float | None] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_quality(model: Predictor, windows: Tensor, reference: Predictor | None = None, label: str = "evaluating") -> Quality:
    """The quality of one model, as `measure_each` measures it, and as it raises."""
    return measure_each([model], windows, reference, label)[0]


@torch.inference_mode()
def measure_each(
    models: Sequence[Predictor], windows: Tensor, reference: Predictor | None = None, label: str = "evaluating"
) -> list[Quality]:
    """Run the windows, int64 [windows, length], through each of `models`, and once through `reference` where one is given, or take their
    logits where these are given.

    Raises:
        UserError: fewer than two windows, windows of fewer than two tokens, the two models' vocabularies differ, or predictions that
            are not finite.
    """
    if windows.shape[0] < 2:
        raise UserError("one window has no standard error: give a longer text, shorter windows or more of them")
    if windows.shape[1] < 2:
        raise UserError("a window needs at least two tokens: one to predict from and one to predict")
    found: list[list[dict[str, Tensor]]] = [[] for _ in models]
    for index, window in enumerate(progress(windows.split(1), label, leave=False)):
        expected = None if reference is None else logits_of(reference, index, window)
        for model, own in zip(models, found):
            logits = logits_of(model, index, window)
            if expected is not None and expected.shape != logits.shape:
                raise UserError(
                    f"the reference predicts {expected.shape[1]} tokens, the model {logits.shape[1]}: they are not of one family"
                )
            seen = by_position(logits, window[0, 1:].to(logits.device), None if expected is None else expected.to(logits.device))
            own.append({name: values.cpu() for name, values in seen.items()})
            del logits  # before the next ones are made
        del expected
    return [summarized(own) for own in found]


def summarized(found: Sequence[dict[str, Tensor]]) -> Quality:
    """The figures of a model, of what by_position found in each window.

    Raises:
        UserError: predictions that are not finite.
    """
    rows = [{name: float(values.mean()) for name, values in window.items()} for window in found]
    if not all(math.isfinite(value) for row in rows for value in row.values()) or max(row["loss"] for row in rows) > LARGEST_LOSS:
        raise UserError(
            "the model's predictions are no numbers, or beyond counting, on this text: its weights or its configuration are damaged, or it "
            "overflows"
        )
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
    loss, loss_error = mean_and_error(columns["loss"])
    result: dict[str, Any] = {
        "perplexity": math.exp(loss),
        "stderr": math.exp(loss) * loss_error,  # first order: d exp(x) = exp(x) dx
        "tokens": sum(len(window["loss"]) for window in found),
        "window": len(found[0]["loss"]) + 1,
    }
    if "kl" in columns:
        result["kl"], result["kl_stderr"] = mean_and_error(columns["kl"])
        result["kl_windows"] = [row["kl"] for row in rows]
        result["top1"] = float(columns["top1"].mean())
        result["loss_increase"], result["loss_increase_stderr"] = mean_and_error(columns["loss"] - columns["reference"])
        result |= by_token(torch.cat([torch.stack([window[name].double() for name in ("kl", "top1", "sure")]) for window in found], 1))
        result |= in_parts(*(torch.stack([window[name] for window in found]).double() for name in ("kl", "top1", "surest")))
    return Quality(**result)


def in_parts(kl: Tensor, top1: Tensor, surest: Tensor) -> dict[str, list[float | None]]:
    """What Quality says by place and by confidence, of float64 [windows, positions] each: KL, whether both choose one token, and the
    probability that the reference gives to its likeliest."""
    part = (surest * PARTS).long().clamp(0, PARTS - 1)

    def mean(values: Tensor) -> float | None:
        return float(values.mean()) if values.numel() else None

    return {
        "kl_by_place": [mean(some) for some in kl.tensor_split(PARTS, dim=1)],
        "kl_by_confidence": [mean(kl[part == number]) for number in range(PARTS)],
        "flips_by_confidence": [mean(1 - top1[part == number]) for number in range(PARTS)],
    }


def by_token(single: Tensor) -> dict[str, float | None]:
    """What Quality says of single tokens, of float64 [3, tokens]: KL, whether both choose one token, whether the reference is sure."""
    kl, top1, sure = single
    median, p90, p99 = (float(value) for value in kl.quantile(torch.tensor([0.5, 0.9, 0.99], dtype=kl.dtype)))
    flips = float(1 - top1[sure == 1].mean()) if sure.any() else None
    return {"kl_median": median, "kl_p90": p90, "kl_p99": p99, "kl_max": float(kl.max()), "flips_sure": flips}


def by_position(logits: Tensor, target: Tensor, expected: Tensor | None) -> dict[str, Tensor]:
    """Figures of each position, float32 [positions], of logits [positions, vocabulary] and the tokens [positions] that follow: `loss`, and
    with a reference's `expected` logits its loss, KL, whether both choose one token, what the reference gives to its likeliest, and whether
    that is at least SURE. A few positions at a time lie in the cache."""
    parts, rows = [], rows_at_once(logits)
    for index in range(0, len(target), rows):
        some = slice(index, index + rows)
        log_q = logits[some].log_softmax(-1)
        part = {"loss": nn.functional.nll_loss(log_q, target[some], reduction="none")}
        if expected is not None:
            log_p = expected[some].log_softmax(-1)
            part["reference"] = nn.functional.nll_loss(log_p, target[some], reduction="none")
            part["kl"] = (log_p.exp() * (log_p - log_q)).sum(-1)
            (surest, theirs), (_, ours) = log_p.max(-1), log_q.max(-1)  # on a CPU argmax takes twice the time of max
            part["top1"] = (theirs == ours).float()
            part["sure"], part["surest"] = (surest >= math.log(SURE)).float(), surest.exp()
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of a vector and the standard error of it."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Mean of first − second over the same windows, and its standard error: what makes a window hard for both cancels.

    Raises:
        ValueError: fewer than two windows, or not the same number of them.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if len(differences) < 2:
        raise ValueError("one window has no standard error")
    return statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
