"""What lessons compute on the way to a figure."""

from pathlib import Path

import pytest
import torch

from qlab.evaluate.quality import measure_quality
from qlab.methods.gptq import gptq
from qlab.models.opening import OpenedModel
from qlab.recipes import parse
from qlab.show.titles.principles import INT8, STORED
from qlab.workbook import experiments
from qlab.workbook.lesson import open_lesson


def test_where_it_helps_counts_harm_and_sees_whether_unevenness_goes_with_the_gain() -> None:
    plain = {f"model.layers.0.mlp.{kind}": 1.0 for kind in ("up_proj", "down_proj", "gate_proj")}
    own = dict(zip(plain, (0.5, 1.25, 0.9), strict=True))
    uneven = {"0.up_proj": 9.0, "0.down_proj": 1.0, "0.gate_proj": 3.0}
    table = experiments.layer_changes(plain, {"way": own}, uneven)
    assert table["removed"].tolist() == pytest.approx([50, -25, 10])
    (sentence,) = experiments.where_it_helps(table)
    assert "1 of 3 layers made worse, worst 0.down_proj by 25.0 %" in sentence
    assert sentence.endswith("rank correlation of unevenness and gain over plain rounding +1.00, which chance gives too")


@pytest.mark.parametrize(("turn", "said"), [(1, "+1.00: more is removed"), (-1, "-1.00: less is removed")])
def test_unevenness_goes_with_the_gain_only_beyond_chance(turn: int, said: str) -> None:
    plain = {f"model.layers.{n}.mlp.up_proj": 1.0 for n in range(12)}
    own = {name: 0.5 - turn * 0.01 * n for n, name in enumerate(plain)}
    (sentence,) = experiments.where_it_helps(experiments.layer_changes(plain, {"way": own}, {f"{n}.up_proj": 1.0 + n for n in range(12)}))
    assert sentence.endswith(f"{said} where channels are more uneven")


def test_a_curve_of_calibration_measures_a_control_that_no_text_changes_once(
    tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = open_lesson(str(tiny.path), "docstrings", 2, 32, "python-reference", 2, 32, str(tmp_path), "cpu")
    measured = []
    monkeypatch.setattr(experiments, "measure_quality", lambda *given: measured.append(given) or measure_quality(*given))
    ways = {trust: lambda w, s, trust=trust: gptq(w, s.hessian, 3, 32, trust=trust).dequantize() for trust in (0.0, 1.0)}
    curves = experiments.calibration_curves(lesson, {"control": ways[0.0], "H": ways[1.0]}, (1, 2))
    assert curves["control"][1] == curves["control"][2] > 0
    assert curves["H"][1] != curves["H"][2]
    assert len(measured) == 3


def test_codes_of_a_layer_alone_are_those_of_a_walk_unless_the_blocks_before_were_quantized(tiny: OpenedModel, tmp_path: Path) -> None:
    lesson = open_lesson(str(tiny.path), "docstrings", 4, 64, "python-reference", 2, 32, str(tmp_path), "cpu")
    name, layer = list(lesson.sample.items())[-1]
    seen, walks = lesson.statistics()[name], [parse("gptq-w2g128"), parse("gptq-w2g128-sequential")]
    stored = [lesson.artifact(recipe).source.checkpoint.read(f"{name}.weight") for recipe in walks]
    alone, control = (experiments.same_codes(layer, seen, walks[0], weight) for weight in stored)
    of = layer.weight.numel()
    assert alone >= 0.999 * of
    assert control < 0.99 * of
    other = lesson.statistics()[name.replace(".1.", ".0.")]  # the same kind of layer, of the block before
    assert name != name.replace(".1.", ".0.")
    assert experiments.same_codes(layer, other, walks[0], stored[0]) < 0.99 * of


def test_obq_s_codes_lie_where_the_weights_do() -> None:
    weight, hessian, grid = (torch.empty(size, device="meta") for size in ((4, 8), (8, 8), (4,)))  # not the CPU
    assert experiments.obq_codes(weight, hessian, grid, grid, 4).device == weight.device


def test_one_stored_scale_differs_from_a_scale_a_token_in_that_alone(tiny: OpenedModel, tmp_path: Path) -> None:
    lesson = open_lesson(str(tiny.path), "docstrings", 2, 32, "python-reference", 2, 32, str(tmp_path), "cpu")
    found = experiments.eight_bits(lesson)
    assert list(found) == [*INT8, STORED]
    assert len({row.kl for row in found.values()}) == 4
    made = [lesson.artifact(parse(f"smooth-rtn-w8a8{ending}")) for ending in ("", "-static")]
    assert [lesson.evaluate("again", artifact).kl for artifact in made] == [row.kl for row in list(found.values())[2:]]
    each, stored = (artifact.source.checkpoint for artifact in made)
    names = [f"{name}.weight" for name in lesson.layers]
    assert all(each.read(name).equal(stored.read(name)) for name in names)
    assert [checkpoint.input_scale(names[0].removesuffix(".weight")) is None for checkpoint in (each, stored)] == [True, False]
