"""A lesson on a model that rests shows the figures of a lesson on the whole model, and holds nothing else of its size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qlab.evaluate import kept
from qlab.evaluate.agreement import agreement_tables, answer_prompts
from qlab.evaluate.arithmetic import cached_in
from qlab.evaluate.quality import measure_each
from qlab.methods.gptq import gptq
from qlab.methods.nf4 import nf4
from qlab.methods.rtn import rtn
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.models.resting import choosing
from qlab.models.texts.prompts import load_prompts
from qlab.recipes import parse
from qlab.release.finetune import Training, tune
from qlab.walk import by_block
from qlab.workbook import experiments
from qlab.workbook.answers import answers
from qlab.workbook.drawn.spending import spend
from qlab.workbook.lesson import Lesson, open_lesson
from tests.conftest import tiny_folder

Opened = tuple[Lesson, Lesson]


def opened(model: Path, work: Path) -> Lesson:
    return open_lesson(str(model), "docstrings", 2, 32, "python-reference", 3, 32, str(work), "cpu")


@pytest.fixture(scope="module")
def lessons(tiny: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """One on the whole model, one on the model at rest, which keeps as much on the disk as it can."""
    whole = opened(tiny.path, tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as little:
        little.setattr(choosing, "free_on", lambda device: 1e6)
        resting = opened(tiny.path, tmp_path_factory.mktemp("resting"))
    assert (whole.at_rest, resting.at_rest) == (False, True)
    return whole, resting


@pytest.fixture(autouse=True)
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "IN_MEMORY", 0)
    monkeypatch.setattr(by_block, "LARGE", 0)


def alike(lessons: Opened, experiment: Any) -> Any:
    """What an experiment finds in both lessons, once it is the same."""
    first, second = (experiment(lesson) for lesson in lessons)
    assert first == second
    return first


def rounded(bits: int, _: str, weight: Tensor) -> Tensor:
    return rtn(weight, bits, 128).dequantize()


def test_it_is_said_before_the_lesson(tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(choosing, "free_on", lambda device: 1e6)
    opened(tiny.path, tmp_path)
    assert "In FP32 the model takes 0.01 GB. It rests as it is stored, 0.00 GB on the device" in capsys.readouterr().out


def test_logits_the_noise_floor_and_what_it_is_keyed_by(lessons: Opened) -> None:
    assert alike(lessons, lambda lesson: [tensor.tolist() for tensor in lesson.expected])
    assert alike(lessons, lambda lesson: lesson.floor)
    assert alike(lessons, lambda lesson: (str(lesson.dtype), lesson.device)) == ("torch.float32", "cpu")


def test_statistics_of_the_sample_and_means_of_all(lessons: Opened) -> None:
    def seen(lesson: Lesson) -> Any:
        found = lesson.statistics()
        of = {name: (each.hessian.tolist(), each.magnitude.tolist(), each.tokens, each.trust) for name, each in found.items()}
        return of, {name: each.magnitude.tolist() for name, each in lesson.channels.items()}

    statistics, channels = alike(lessons, seen)
    assert list(statistics) == list(lessons[1].sample)
    assert list(channels) == list(lessons[1].layers)
    few = [lesson.statistics(lesson.calibration[:1]) for lesson in lessons]
    name = next(iter(few[0]))
    assert few[1][name].tokens == 32
    assert torch.equal(few[0][name].hessian, few[1][name].hessian)
    assert torch.equal(few[0][name].trusted(), few[1][name].trusted())


def test_changed_weights_are_judged_and_taken_out_again(lessons: Opened) -> None:
    before = [tensor.tolist() for tensor in lessons[1].expected]

    def judged(lesson: Lesson) -> Any:
        found = []
        for change in (partial(rounded, 3), lambda _, weight: weight.bfloat16()):
            with lesson.with_weights(change) as changed:
                found += [lesson.evaluate("changed", changed), answers(changed, lesson.tokenizer, 4)]
        with lesson.with_weights(partial(rounded, 2), list(lesson.layers)[:3], costly=True) as changed:
            found += [lesson.evaluate("some", changed)]
        return found

    found = alike(lessons, judged)
    assert found[0].kl > found[2].kl > 0
    assert not lessons[1].changed
    assert [kept.next_token_logits(lessons[1].reference, window).tolist() for window in lessons[1].evaluation.split(1)] == before


def test_a_second_change_is_refused_and_a_failure_leaves_the_original(lessons: Opened) -> None:
    resting = lessons[1]
    with (
        resting.with_weights(partial(rounded, 4)),
        pytest.raises(RuntimeError, match="leave the other"),
        resting.with_weights(partial(rounded, 3)),
    ):
        pass
    with pytest.raises(ZeroDivisionError), resting.with_weights(lambda *_: 1 / 0, costly=True):  # type: ignore[arg-type, return-value]
        pass
    assert not resting.changed
    with resting.with_weights(partial(rounded, 4)):
        pass


def test_what_lessons_compute_on_the_way_to_a_figure(lessons: Opened) -> None:
    ways = {"gptq": lambda w, s: gptq(w, s.hessian, 4, 128).dequantize(), "control": lambda w, s: rtn(w, 4, 128).dequantize()}
    alike(lessons, lambda lesson: experiments.calibration_curves(lesson, ways, (1, 2)))
    alike(lessons, lambda lesson: experiments.layer_errors(lesson.sample, lesson.statistics(), ways).to_dict("records"))
    alike(lessons, lambda lesson: spend(lesson).as_dict())
    alike(lessons, lambda lesson: measure_each([cached_in(lesson.reference, "q8_0")], lesson.evaluation, lesson.expected))


def test_answers_to_prompts_and_agreement_of_an_artifact_judged_by_blocks(lessons: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = load_prompts()[::150]

    def agreed(lesson: Lesson) -> Any:
        artifact = lesson.artifact(parse("rtn-w4g128"))
        answered = answer_prompts(lesson.reference, lesson.tokenizer, chosen, 4)
        if not lesson.at_rest:
            return agreement_tables(lesson.reference, [("rtn", load(artifact.source))], answered).to_dict("records")
        monkeypatch.setattr(by_block, "load_and_rest", None)
        assert len({entry.ids.shape for entry in answered}) > 1
        predictor = lesson.predictor(artifact, [entry.ids for entry in answered])
        return agreement_tables(lesson.reference, [("rtn", predictor)], answered).to_dict("records")

    assert {row["format"] for row in alike(lessons, agreed)} == {"original (control)", "rtn"}


def test_a_new_version_is_the_original_with_its_adapter(lessons: Opened) -> None:
    whole, resting = lessons
    tuned = tune(whole.source, whole.calibration, whole.calibration, Training(steps=3, batch=2))
    artifact = whole.artifact(parse("nf4"))
    merged = load(whole.source, apart=True)
    for name, (second, first, scaling) in tuned.factors.items():
        merged.get_parameter(f"{name}.weight").data += second @ first * scaling
    expected = [kept.next_token_logits(merged, window) for window in whole.evaluation.split(1)]
    with resting.with_weights(tuned.merged, tuned.factors) as version:
        for window, logits in zip(whole.evaluation.split(1), expected):
            assert torch.equal(kept.next_token_logits(version, window), logits)
    old, anew = alike(lessons, lambda lesson: experiments.new_version(lesson, tuned, artifact, lambda weight: nf4(weight).dequantize()))
    assert old.kl > 0
    assert anew.kl > 0


def test_adapters_are_trained_on_a_model_at_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = opened(tiny_folder(tmp_path / "model"), tmp_path)
    asked = (lesson.source, lesson.calibration, lesson.calibration, Training(steps=3, batch=2))
    whole = tune(*asked)
    monkeypatch.setattr(choosing, "free_on", lambda device: 1e6)
    resting = tune(*asked)
    assert resting.losses == pytest.approx(whole.losses, rel=1e-6)
    assert resting.after == pytest.approx(whole.after, rel=1e-5)
    assert resting.before == whole.before
    assert resting.frozen_bytes < 0.51 * whole.frozen_bytes
    assert set(resting.factors) == set(whole.factors)
