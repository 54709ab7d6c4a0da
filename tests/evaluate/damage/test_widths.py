"""A budget of bits spent on widths of integers, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from qlab.artifacts.artifact import Artifact
from qlab.artifacts.room import of_bits
from qlab.cli import call
from qlab.evaluate.damage.widths import choose_widths, widths_asked
from qlab.models.opening import OpenedModel
from qlab.recipes import parse
from qlab.recipes.fitting import layers_of
from qlab.recipes.mixed import HALF, check_mixable
from qlab.support.errors import UserError


def test_the_budget_is_spent_and_what_was_asked_is_kept(tiny: OpenedModel, calibration: Tensor) -> None:
    recipe = check_mixable(parse("rtn-w4g64-sym-ct"))
    asked = {"layers.0.mlp": 8, r"layers\.0\.mlp\.down": HALF}
    chosen, told = choose_widths(tiny, recipe, of_bits(7.0), (2, 4, 8), asked, calibration[:2], "cpu")
    shapes = {name: outputs * inputs for name, (outputs, inputs) in layers_of(tiny.layout).items()}
    bits = sum(size * (chosen.width(name) + (0 if chosen.width(name) == HALF else 0.25)) for name, size in shapes.items())
    assert 0.9 * 7.0 < bits / sum(shapes.values()) <= 7.0
    assert chosen.width("model.layers.0.mlp.down_proj") == HALF
    assert chosen.width("model.layers.0.mlp.up_proj") == chosen.width("model.layers.0.mlp.gate_proj") == 8
    assert len({chosen.width(f"model.layers.1.self_attn.{part}_proj") for part in "qkv"}) == 1
    assert f"{bits / sum(shapes.values()):.3f} bits a weight of the 14 layers" in told[0]
    assert any("half precision: 1 layers (model.layers.0.mlp.down_proj)" in line for line in told)
    with pytest.raises(UserError, match="the smallest widths take"):
        choose_widths(tiny, recipe, of_bits(3.0), (4, 8), {}, calibration[:2], "cpu")


def test_groups_of_fewer_weights_are_a_way_to_spend_bits(tiny: OpenedModel, calibration: Tensor) -> None:
    recipe = check_mixable(parse("rtn-w4g128-sym-ct"))
    chosen, told = choose_widths(tiny, recipe, of_bits(4.75), (4,), {"o_proj": 8}, calibration[:2], "cpu", (32, 64))
    sizes = dict(chosen.sizes)
    assert set(sizes.values()) <= {32, 64}
    assert sizes
    assert chosen.width("model.layers.0.self_attn.o_proj") == 8
    assert "model.layers.0.self_attn.o_proj" not in sizes
    shapes = {name: outputs * inputs for name, (outputs, inputs) in layers_of(tiny.layout).items()}
    bits = sum(size * (chosen.width(name) + 16 / sizes.get(name, 128)) for name, size in shapes.items()) / sum(shapes.values())
    assert 4.57 < bits <= 4.75  # with groups of 128 alone it would be 4.57
    assert f"{bits:.3f} bits a weight" in told[0]
    assert any(line.startswith("  4 bits in groups of 32: ") or line.startswith("  4 bits in groups of 64: ") for line in told)


def test_patterns_that_fit_nothing_are_refused() -> None:
    groups = {"a": ["model.layers.0.mlp.down_proj"]}
    assert widths_asked(groups, {"down": 4, "mlp": 8}) == {"a": 8}
    with pytest.raises(UserError, match="fits no layer"):
        widths_asked(groups, {"lm_head": 8})
    with pytest.raises(UserError, match="no regular expression"):
        widths_asked(groups, {"(": 8})


def test_the_command(tiny: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", "--model", str(tiny.path), "--windows", "2", "--length", "32", "--out", str(tmp_path / "out")]
    assert call([*words, "--recipe", "rtn-w4g64-sym-ct", "--bits", "5.5", "--set", "layers.0.self_attn=8"]) == 0
    assert "predicted KL" in capsys.readouterr().out
    artifact = Artifact.open(tmp_path / "out" / "rtn-mixed5.5g64-sym-ct")
    assert artifact
    assert dict(artifact.manifest["inputs"]["recipe"]["widths"])["model.layers.0.self_attn.k_proj"] == 8
    assert call([*words, "--recipe", "q4_k_m-plain", "--bits", "4.8", "--types", "Q3_K,Q4_K,Q6_K"]) == 0
    assert "tensors whose types are chosen" in capsys.readouterr().out
    typed = Artifact.open(tmp_path / "out" / "q4_k_m-mixed4.8-plain")
    assert typed
    assert len(typed.manifest["inputs"]["recipe"]["tensor_types"]) == 14
    for wrong, message in (
        (["--recipe", "nf4", "--bits", "4.5"], "such as gptq-w4g128-ct"),
        (["--recipe", "rtn-w4g64-ct", "--recipe", "nf4", "--bits", "4.5"], "give one --recipe"),
        (["--recipe", "rtn-w4g64-ct", "--keep", "down"], "give --bits"),
        (["--recipe", "rtn-w4g64-ct", "--bits", "4.5", "--set", "down"], "expected PATTERN=WIDTH"),
        (["--recipe", "rtn-w4g64-ct", "--bits", "4.5", "--widths", "4,9"], "no width of a layer"),
        (["--recipe", "rtn-w4g64-ct", "--bits", "4.5", "--group-sizes", "48"], "no group size of a layer"),
        (["--recipe", "rtn-w4g64-ct", "--group-sizes", "32"], "give --bits"),
        (["--recipe", "rtn-w4g64-ct", "--bits", "4.5", "--types", "Q4_K"], "--types is for a GGUF file's types"),
        (["--recipe", "q4_k_m", "--size", "4MB"], "a budget of a GGUF file is --bits"),
        (["--recipe", "q4_k_m", "--bits", "4.5", "--widths", "3,4"], "a budget of a GGUF file is --bits"),
        (["--recipe", "q4_k_m", "--bits", "4.5", "--types", "Q7"], "is no quantized type"),
        (["--recipe", "q4_k_m", "--bits", "3", "--types", "Q4_K", "--dry-run"], "the smallest widths take"),
        (["--recipe", "rtn-w4g64-ct", "--bits", "4.5", "--size", "4MB"], "give one of them"),
        (["--recipe", "rtn-w4g64-ct", "--size", "4.5 parsec"], "is no size"),
        (["--recipe", "rtn-w4g64-ct", "--fit", "RTX 40900"], "no device"),
        (["--recipe", "rtn-w4g64-ct", "--bits", "4.5", "--context", "100"], "give it, such as --fit 'RTX 4090'"),
        (["--recipe", "rtn-w4g64-ct", "--fit", "RTX 4090", "--cache", "q2"], "a KV cache in 'q2'"),
        (["--recipe", "rtn-w4g64-ct", "--bits", "4.5", "--max-memory", "100MB"], "to choose widths, the whole model is in memory"),
    ):
        assert call([*words, *wrong]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_width_that_was_asked_for_costs_what_it_costs(tiny: OpenedModel, calibration: Tensor) -> None:
    recipe, predicted = check_mixable(parse("rtn-w4g64-sym-ct")), []
    for width in (2, 8):
        _, told = choose_widths(tiny, recipe, of_bits(9.0), (8,), {"down_proj": width}, calibration[:2], "cpu")
        predicted.append(float(told[-1].partition("nearest: ")[2].partition(" nats")[0]))
    assert predicted[0] > 2 * predicted[1]


@pytest.mark.parametrize("recipe", ["rtn-w4g32-ct", "rtn-w4grow-sym-ct"])
def test_a_size_is_met_to_one_percent(recipe: str, tiny: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = 2_900_000
    words = ["quantize", "--model", str(tiny.path), "--windows", "2", "--length", "32", "--out", str(tmp_path / "out")]
    assert call([*words, "--recipe", recipe, "--size", "2900KB", "--widths", "2,3,4,5,6,8,16"]) == 0
    artifact = Artifact.open(tmp_path / "out" / recipe.replace("w4g", "mixed2.9MBg"))
    assert artifact
    assert 0.99 * asked < artifact.disk_bytes <= asked
    said = capsys.readouterr().out.partition("weight files of ")[2]
    assert float(said.split()[0]) * 1e6 == pytest.approx(artifact.disk_bytes, rel=1e-3)
    widths = {width for _, width in artifact.manifest["inputs"]["recipe"]["widths"]}
    assert len(widths) > 1
    recipes = {name: number for name, number in artifact.manifest["inputs"]["recipe"].items() if name in ("budget", "bits")}
    assert recipes == {"budget": "2.9MB", "bits": 4}


def test_room_that_is_left_is_said_with_the_reason(tiny: OpenedModel, calibration: Tensor) -> None:
    recipe = check_mixable(parse("rtn-w4g64-sym-ct"))
    chosen, told = choose_widths(tiny, recipe, of_bits(12.0), (2, 4), {}, calibration[:2], "cpu")
    assert {chosen.width(name) for name in layers_of(tiny.layout)} == {4}
    assert any("MB are left: every layer has the widest code that was offered" in line for line in told)
