"""What every lesson has: the noise floor beside its tables of quality, changed weights, statistics of the layers that it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlab.evaluate.arithmetic import FLOOR
from qlab.evaluate.quality import measure_quality
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, decoder_layers
from qlab.recipes import parse
from qlab.show.tables import quality_table
from qlab.walk import by_block
from qlab.walk.routing import collect
from qlab.workbook import lesson as lessons
from qlab.workbook.lesson import Lesson, open_lesson


@pytest.fixture
def lesson(tiny: OpenedModel, tmp_path: Path) -> Lesson:
    return open_lesson(str(tiny.path), "docstrings", 2, 32, "python-reference", 3, 32, str(tmp_path), "cpu")


def test_a_table_of_quality_ends_with_the_noise_floor(tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = open_lesson(str(tiny.path), "docstrings", 2, 32, "python-reference", 3, 32, str(tmp_path), "cpu")
    assert lesson.floor is lesson.floor  # measured once
    quality = {"itself": lesson.evaluate("itself", lesson.reference)} | lesson.floor
    assert (quality["itself"].kl or 0) < 1e-8 < (quality[FLOOR].kl or 0)
    again = open_lesson(str(tiny.path), "docstrings", 2, 32, "python-reference", 3, 32, str(tmp_path), "cpu")
    monkeypatch.setattr("qlab.workbook.lesson.measure_quality", None)  # another lesson takes what this one measured
    assert again.floor == lesson.floor
    assert FLOOR in quality_table(quality).to_html().partition("itself")[2]


def test_a_larger_model_is_measured_on_fewer_windows_and_it_is_said(
    tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(windows: int) -> int:
        return len(open_lesson(str(tiny.path), "docstrings", 2, 32, "python-reference", windows, 32, str(tmp_path), "cpu").evaluation)

    assert opened(0) == 16
    assert "evaluation_windows is" not in capsys.readouterr().out
    monkeypatch.setattr("qlab.workbook.parameters.LARGE", 1e3)
    assert opened(0) == 5
    assert "evaluation_windows is 5" in capsys.readouterr().out
    assert opened(5) == 5


def test_changed_weights_are_judged_in_the_original_s_place_and_taken_out_again(lesson: Lesson, tiny: OpenedModel) -> None:
    before = {name: tensor.clone() for name, tensor in lesson.reference.state_dict().items()}
    changed, (first, *_) = load(tiny, apart=True), lesson.layers
    for layer in decoder_layers(changed).values():
        layer.weight.data = layer.weight.data.bfloat16().float().round(decimals=2)
    with lesson.with_weights(lambda _, weight: weight.bfloat16().float().round(decimals=2)) as model:
        quality = measure_quality(model, lesson.evaluation, lesson.expected)
        with pytest.raises(RuntimeError, match="leave the other"), lesson.with_weights(lambda _, weight: weight):
            pass
    assert quality == measure_quality(changed, lesson.evaluation, load(tiny, apart=True))
    assert quality.kl
    with pytest.raises(ZeroDivisionError), lesson.with_weights(lambda name, weight: weight / (name == first) if name == first else 1 / 0):
        pass
    after = lesson.reference.state_dict()
    assert not lesson.changed
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_h_is_made_of_the_sample_s_layers_and_means_of_all(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collect(lesson.reference, lesson.layers, lesson.calibration)
    monkeypatch.setattr(lessons.Lesson, "sampled_blocks", [0])
    statistics = lesson.statistics()
    assert list(statistics) == [name for name in lesson.layers if ".0." in name]
    assert len(statistics) < len(lesson.layers) == len(lesson.channels)
    for name, seen in statistics.items():
        assert torch.equal(seen.hessian, whole[name].hessian)
        assert torch.equal(seen.mean_square, lesson.channels[name].mean_square)
    for name, means in lesson.channels.items():
        assert torch.equal(means.magnitude, whole[name].magnitude)
        torch.testing.assert_close(means.mean_square, whole[name].mean_square)


def test_an_artifact_that_is_large_is_judged_block_by_block(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = lesson.artifact(parse("rtn-w4g32"))
    whole = measure_quality(load(artifact.source), lesson.evaluation, lesson.expected)
    monkeypatch.setattr(by_block, "LARGE", 0)
    monkeypatch.setattr(by_block, "load_and_rest", None)
    assert lesson.evaluate("rtn", artifact) == whole


def test_the_original_has_predicted_before_an_artifact_s_head_is_read(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    known, read = list[bool](), lessons.predictor

    def noted(*given: Any) -> Any:
        known.append("expected" in vars(lesson))
        return read(*given)

    monkeypatch.setattr(lessons, "predictor", noted)
    lesson.evaluate("rtn", lesson.artifact(parse("rtn-w4g32")))
    assert known == [True]
