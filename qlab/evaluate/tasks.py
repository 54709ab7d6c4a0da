"""lm-eval's tasks (MMLU, HellaSwag, LAMBADA, any that it knows) on any model or artifact that qlab opens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlab.evaluate.kept import Predictor, logits_of
from qlab.evaluate.local_tasks import CLOZE, cloze, local_config
from qlab.peers.patching import patched
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.support.progress import bars_on_terminals

Predicting = Callable[[Sequence[Tensor]], Predictor]
"""Texts, int64 [1, length] each → what a model predicts of them."""

TOKENS = 1 << 17  # of texts that are given to such a function at a time
BOOTSTRAP = 1000  # resamples, for metrics whose standard error has no formula
CHOSEN = "acc"  # lm-eval's metric of the choice with the largest likelihood


@dataclass(frozen=True)
class Score:
    """One metric of one task over `documents`: `value` as lm-eval counts it (a share, or a perplexity), and its standard error. `answers`:
    under CHOSEN of multiple choice, the number of the choice that the model finds likeliest, for each document."""

    task: str
    metric: str
    value: float
    stderr: float
    documents: int
    answers: tuple[int, ...] = ()


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    limit: int | None = None,
    folder: Path | None = None,
    text: str = "",
    batch: int = 8,
    fewshot: int | None = None,
    predicting: Predicting | None = None,
) -> list[Score]:
    """Run the tasks `names`, at most `limit` documents of each (MMLU: of each subject); `fewshot` examples, else the task's own number.
    Where `predicting` is given, it is asked instead of the model, which is of the same family then and tells the length of a context.

    Data is read from `folder`, if one is given and the task has a form there (qlab.evaluate.local_tasks), else from the hub; that of
    `heldout-cloze` is made of `text`.

    Raises:
        UserError: no such task, or its data can be had neither here nor from the hub, or a task that `predicting` cannot serve.
    """
    from datasets.exceptions import DatasetsError
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    judge: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    if predicting is not None:
        ask_instead(judge, predicting)
    scores: list[Score] = []
    for name in names:
        with Scratch() as work:
            wanted = configured(name, limit, folder, text, work)
            try:
                # lm-eval would describe the machine, by pip and other programs, at each call; nobody reads it here.
                with bars_on_terminals(), patched((evaluator, "add_env_info", lambda results: None)):
                    found = evaluator.simple_evaluate(
                        judge, tasks=[wanted], limit=limit, num_fewshot=fewshot, task_manager=task_manager(known=name != CLOZE),
                        bootstrap_iters=BOOTSTRAP, log_samples=True,
                    )  # fmt: skip
            except (OSError, DatasetsError) as error:  # the hub's client, when there is no network, and what it makes of damaged files
                raise UserError(
                    f"the data of {name} could not be had ({type(error).__name__}): give its folder (--task-data), or a network"
                ) from error
        assert found is not None
        scores += scores_of(name, found)
    return scores


def ask_instead(judge: Any, predicting: Predicting) -> None:
    """Have lm-eval's `judge` answer by what `predicting` makes of its texts, TOKENS at a time: of each it is asked how likely its end is.

    Raises, when it is asked for more than that:
        UserError: such a task needs a model that is whole in memory.
    """

    def likelihoods(requests: Sequence[tuple[Any, list[int], list[int]]], *_: Any, **__: Any) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        while len(found) < len(requests):
            some, tokens = list[tuple[Tensor, list[int]]](), 0
            for _, context, end in requests[len(found) :]:
                tokens += len(context) + len(end)
                if some and tokens > TOKENS:
                    break
                some.append((torch.tensor([(context + end)[-judge.max_length :]]), end))
            windows = [window for window, _ in some]
            predictor = predicting(windows)
            found += [likelihood(logits_of(predictor, index, window), end) for index, (window, end) in enumerate(some)]
            del predictor  # before the next one is made
        return found

    def refused(*_: Any, **__: Any) -> None:
        raise UserError("this task has the model write, or reads whole documents: qlab runs it on models that it holds whole in memory")

    judge._loglikelihood_tokens, judge.loglikelihood_rolling, judge.generate_until = likelihoods, refused, refused


def likelihood(logits: Tensor, end: Sequence[int]) -> tuple[float, bool]:
    """Of logits float32 [length − 1, vocabulary], the log-likelihood of the last tokens, `end`, and whether each of them is likeliest."""
    log = logits[-len(end) :].log_softmax(-1)
    wanted = torch.tensor(end, device=log.device)
    return float(log.gather(1, wanted[:, None]).sum()), bool((log.argmax(-1) == wanted).all())


def check_tasks(names: Sequence[str], limit: int | None = None, folder: Path | None = None, text: str = "") -> None:
    """See that there are tasks of these names, and that the data of those that lie in `folder` is whole, before any is run.

    Raises:
        UserError: as run_tasks, but for data that the hub is to give.
    """
    if folder and not folder.is_dir():
        raise UserError(f"no folder {folder} for --task-data: expected one with mmlu/, hellaswag/ or lambada/ in it")
    for name in names:
        with Scratch() as work:
            configured(name, limit, folder, text, work)


def configured(name: str, limit: int | None, folder: Path | None, text: str, work: Path) -> str | dict[str, Any]:
    """A task as lm-eval is told of it: what is read from `folder` or made of `text`, rewritten into `work`, or a name that it knows.

    Raises:
        UserError: there is no such task, or its data is damaged.
    """
    made = cloze(text, limit or 500, work) if name == CLOZE else folder and local_config(name, folder, work)
    if made:
        return made
    if name not in task_manager(known=True).all_tasks:
        raise UserError(f"no task {name[:60]!r}: expected one of lm-eval's, such as mmlu, hellaswag, lambada_openai, or {CLOZE}")
    return name


@cache
def task_manager(known: bool) -> Any:
    """lm-eval's index of the tasks that are `known` to it, thousands of files that take it eight seconds; or of none."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=known)


def scores_of(name: str, found: Any) -> list[Score]:
    """The figures of one task; or of several, as the subjects of MMLU, weighted by their size and their errors pooled as lm-eval does."""
    from lm_eval.api.metrics import pooled_sample_stderr

    sizes = {task: counted["effective"] for task, counted in found["n-samples"].items()}
    parts: dict[str, list[Score]] = {}
    for task, size in sizes.items():
        figures = found["results"][task]
        for key, value in figures.items():
            metric, _, filtering = key.partition(",")
            if filtering and not metric.endswith("_stderr"):
                score = Score(name, metric, float(value), float(figures[f"{metric}_stderr,{filtering}"]), size)
                parts.setdefault(metric, []).append(score)
    answers = tuple(answer for task in sizes for answer in answers_of(found["samples"][task]))
    whole = []
    for metric, scores in parts.items():
        counts = [score.documents for score in scores]
        mean = sum(score.value * score.documents for score in scores) / sum(counts)
        error = scores[0].stderr if len(scores) == 1 else pooled_sample_stderr([score.stderr for score in scores], counts)
        whole.append(Score(name, metric, mean, error, sum(counts), answers if metric == CHOSEN else ()))
    return whole


def answers_of(samples: Sequence[Mapping[str, Any]]) -> list[int]:
    """The choice that the model finds likeliest, of each document of one task in order; none where the task is not of multiple choice."""
    found: dict[int, int] = {}
    for sample in samples:
        choices = sample["filtered_resps"]
        if CHOSEN not in sample["metrics"] or len(choices) < 2 or "acc_mutual_info" in sample["metrics"]:
            return []  # one likelihood, generated text, or likelihoods twice
        likelihoods = [float(likelihood) for likelihood, _ in choices]
        found[sample["doc_id"]] = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    return [found[document] for document in sorted(found)]


def changed(score: Score, original: Score) -> tuple[float, float] | None:
    """On which share of a task's documents the two models choose another answer, and the standard error of that; None where nothing is to
    choose. An accuracy may stay though many answers changed: as many became right as wrong.

    Raises:
        ValueError: they have not answered the same documents.
    """
    if not score.answers:
        return None
    others = sum(ours != theirs for ours, theirs in zip(score.answers, original.answers, strict=True))
    share = others / len(score.answers)
    return share, math.sqrt(share * (1 - share) / len(score.answers))
