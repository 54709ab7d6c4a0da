"""Agreement with the original over prompts: how far the next-token distributions part, and whether the answers do.

The original writes its greedy answer to each prompt; both models then read prompt and answer once. A model's own greedy answer
is the original's for as long as its likeliest token, given the original's tokens so far, is the original's next one: so where
two answers part is read from that one pass, and no second answer need be generated.

No answer may end early, as in load tests (`ignore_eos`): the end of a text is forbidden. A base model would otherwise end many
at once, and agree on nothing; or, its ends not heeded, begin the same unconditional text after every prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from qlab.evaluate.kept import Predictor, kept_logits, logits_of
from qlab.models.texts.conversations import Tokenizer
from qlab.models.texts.tokens import beginning
from qlab.support.errors import UserError
from qlab.support.progress import progress

RESAMPLES = 500  # of the bootstrap
AT_ONCE = 1 << 21  # values that are counted at a time, for so many samples


CONTROL = "original (control)"  # its name among formats


@dataclass(frozen=True)
class Answered:
    """A prompt with its `language` and `kind`: int64 [1, prompt + answer], of which the last `tokens` are the original's answer.
    `ends` are the tokens that no answer may hold."""

    language: str
    kind: str
    ids: Tensor
    tokens: int
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Parting:
    """One prompt: KL(original ‖ model) at each position, nats; the share of positions with the same likeliest token; and the share
    of the answer before the two part, 1 where they do not."""

    language: str
    kind: str
    kl: Tensor
    top1: float
    prefix: float


@torch.inference_mode()
def answer_prompts(
    original: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[Mapping[str, str]], tokens: int = 16, batch: int = 16
) -> list[Answered]:
    """Greedy answers of `tokens` tokens, none of them an end of text, to prompts as qlab.models.texts.prompts.load_prompts gives them.

    Each begins with BOS where the tokenizer begins a text so. Of a prompt too long for the model's context the last tokens are kept.

    Raises:
        UserError: no prompts, or a context shorter than an answer.
    """
    start = beginning(tokenizer)
    room = getattr(original.config.get_text_config(), "max_position_embeddings", 2048) - tokens - len(start)
    if not prompts or room < 1:
        raise UserError(f"agreement needs prompts, and a context longer than the {tokens} tokens of an answer")
    ids = [start + tokenizer.encode(entry["prompt"], add_special_tokens=False)[-room:] for entry in prompts]
    known = original.generation_config.eos_token_id
    ends = () if known is None else (known,) if isinstance(known, int) else tuple(known)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # prompts of like length together: little padding
    found: dict[int, Answered] = {}
    for first in progress(range(0, len(order), batch), "answers", leave=False):
        chosen = order[first : first + batch]
        width = max(len(ids[index]) for index in chosen)
        padded = torch.tensor([[0] * (width - len(ids[index])) + ids[index] for index in chosen], device=original.device)
        mask = torch.tensor([[0] * (width - len(ids[index])) + [1] * len(ids[index]) for index in chosen], device=original.device)
        out = original.generate(padded, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        for row, index in zip(out.cpu(), chosen):
            entry = prompts[index]
            whole = row[width - len(ids[index]) :][None].clone()
            found[index] = Answered(entry.get("language", "any"), entry.get("kind", "any"), whole, tokens, ends)
    return [found[index] for index in range(len(ids))]


@torch.inference_mode()
def part(model: Predictor, original: Predictor, answered: Sequence[Answered]) -> list[Parting]:
    """Read each prompt with its answer by both models and compare the distributions of every next token.

    In place of a model its logits can be given, for the answers' `ids`: of one that several are held against those that
    qlab.evaluate.kept.kept_logits keeps, of a large one those that qlab.walk.by_block makes.
    """
    found = []
    for index, entry in enumerate(progress(answered, "agreement", leave=False)):
        own_logits, their_logits = logits_of(original, index, entry.ids), logits_of(model, index, entry.ids)
        log_p, log_q = own_logits.log_softmax(-1).cpu(), their_logits.log_softmax(-1).cpu()
        same = log_p.max(-1).indices == log_q.max(-1).indices  # on a CPU argmax takes twice the time of max
        own, theirs = (of[-entry.tokens :].index_fill(1, torch.tensor(entry.ends, dtype=torch.int64), -torch.inf) for of in (log_p, log_q))
        differs = (own.argmax(-1) != theirs.argmax(-1)).nonzero()
        prefix = int(differs[0]) / entry.tokens if len(differs) else 1.0
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        found.append(Parting(entry.language, entry.kind, kl, float(same.float().mean()), prefix))
    return found


def agreement_table(partings: Sequence[Parting], seed: int = 0) -> pd.DataFrame:
    """A row for all prompts, each language and each kind: KL (mean and 99th percentile over positions, nats), `top1`, `identical` (the
    share of answers that never part) and `prefix` (the mean share before they do), each with its standard error, by bootstrap over prompts.
    """
    groups = {"all": list(partings)}
    for name in ("language", "kind"):
        for value in sorted({getattr(one, name) for one in partings}):
            groups[f"{name} {value}"] = [one for one in partings if getattr(one, name) == value]
    return pd.DataFrame([{"prompts of": name, "prompts": len(group)} | _summary(group, seed) for name, group in groups.items()])


def agreement_tables(original: PreTrainedModel, others: Iterable[tuple[str, Predictor]], answered: Sequence[Answered]) -> pd.DataFrame:
    """The agreement_table of each of `others` by its name, the column `format`; before them the original's with itself, the control."""
    expected = kept_logits(original, [entry.ids for entry in answered])
    tables = []
    every: Iterable[tuple[str, Predictor]] = chain([(CONTROL, original)], others)
    for name, model in every:
        tables.append(agreement_table(part(model, expected, answered)).assign(format=name))
        del model  # before the next one is read
    return pd.concat(tables)


def _summary(group: Sequence[Parting], seed: int) -> dict[str, float]:
    generator, count = np.random.default_rng(seed), len(group)
    everyone = np.arange(count)[None]
    samples = generator.integers(count, size=(RESAMPLES, count))
    columns = {
        "top1": np.array([one.top1 for one in group]),
        "identical": np.array([one.prefix == 1 for one in group], dtype=float),
        "prefix": np.array([one.prefix for one in group]),
    }
    pooled = _Pooled([one.kl.numpy() for one in group])
    figures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "kl": pooled.mean,
        "kl_p99": lambda chosen: pooled.percentile(chosen, 99),
        **{name: (lambda chosen, values=values: values[chosen].mean(1)) for name, values in columns.items()},  # type: ignore[misc]
    }
    found = {}
    for name, figure in figures.items():
        found[name] = float(figure(everyone)[0])
        found[f"{name}_stderr"] = float(np.std(figure(samples), ddof=1))
    return found


class _Pooled:
    """The values at all positions of chosen prompts, of many samples at once: `chosen` int64 [samples, prompts], repeated as drawn."""

    def __init__(self, values: Sequence[np.ndarray]) -> None:
        self._lengths = np.array([len(each) for each in values])
        self._sums = np.array([each.sum(dtype=np.float64) for each in values])
        owners, together = np.repeat(np.arange(len(values)), self._lengths), np.concatenate(values).astype(np.float64)
        order = np.argsort(together, kind="stable")
        self._values, self._owners = together[order], owners[order]

    def mean(self, chosen: np.ndarray) -> np.ndarray:
        return self._sums[chosen].sum(1) / self._lengths[chosen].sum(1)

    def percentile(self, chosen: np.ndarray, percent: float) -> np.ndarray:
        """As numpy.percentile of each sample: between two values linearly, and NaN where one of them is."""
        parts = np.array_split(chosen, -(-chosen.size * self._lengths.max() // AT_ONCE))
        found = np.concatenate([self._percentile(part, percent) for part in parts])
        return np.where(np.isnan(self._sums[chosen]).any(1), np.nan, found)

    def _percentile(self, chosen: np.ndarray, percent: float) -> np.ndarray:
        prompts = len(self._lengths)
        rows = np.arange(len(chosen))[:, None] * prompts
        times = np.bincount((rows + chosen).ravel(), minlength=len(chosen) * prompts).reshape(-1, prompts)
        upto = times[:, self._owners].cumsum(1)  # of each value, in rising order: how many in the sample are no larger
        place = percent / 100 * (upto[:, -1] - 1)
        below, above = (self._values[(upto <= rank[:, None]).sum(1)] for rank in (np.floor(place), np.ceil(place)))
        return below + (above - below) * (place % 1)
