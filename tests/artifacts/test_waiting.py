"""What encoded experts take until their block is written, against what a walk really holds then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.artifacts.block_shape import largest_block, waiting
from qlab.artifacts.budget import predict
from qlab.artifacts.room import of_bits
from qlab.evaluate.damage.widths import widest
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import GGUF, NF4, Integers, WalkedRecipe, parse
from qlab.recipes.mixed import HALF, check_mixable, mixed
from tests.bench.made_up import make_checkpoint
from tests.walk.families import FAMILIES, make

WINDOWS = (4, 64)
FOUR = check_mixable(parse("gptq-w4g32-ct"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    """A Qwen3-MoE of three blocks, of which Q4_K_M gives the last one wider down projections."""
    shape = {"hidden": 256, "mlp": 2048, "heads": 4, "kv_heads": 2}
    return locate(str(make_checkpoint(tmp_path_factory.mktemp("mixture") / "model", 3, **shape, kind="qwen3_moe", experts=8)))


def of_experts(source: OpenedModel, width: int, recipe: Integers = FOUR) -> Integers:
    """The recipe with all experts of the last block at a width of its own."""
    last = f"{source.layout.blocks}.{source.layout.count - 1}."
    layers = [name.removesuffix(".weight") for name in source.layout.linear if name.startswith(last) and ".experts." in name]
    return mixed(recipe, dict.fromkeys(layers, width), "5")


def held(recipe: WalkedRecipe, source: OpenedModel, calibration: Tensor, out: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Bytes of the encoded experts of that block which has most of them, from the walk itself."""
    sizes: list[float] = []
    kind: Any = type(recipe)
    original = kind.quantize_block

    def quantize_block(self: Any, *arguments: Any) -> Any:
        made = original(self, *arguments)
        sizes.append(sum(tensor.nbytes for name, tensor in made.stored.items() if "expert" in name or "_exps" in name))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(kind, "quantize_block", quantize_block)
        quantize_model(source, [recipe], calibration, out)
    return max(sizes)


@pytest.mark.parametrize(
    "name", ["rtn-w4g32", "gptq-w4g128", "gptq-w8g64", "rtn-w3g32-ct", "rtn-fp8", "nf4", "q4_k_m-plain", "q8_0", "f16"]
)
def test_they_are_what_a_walk_holds(
    name: str, mixture: OpenedModel, calibration: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse(name)
    found = held(recipe, mixture, calibration[:2, :64], tmp_path, monkeypatch)
    assert waiting(recipe, largest_block(mixture.layout), mixture) == pytest.approx(found, rel=0.04)  # names, g_idx, doubled scales


def test_those_of_the_widest_block_count(
    mixture: OpenedModel, calibration: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, block = of_experts(mixture, 8, check_mixable(parse("rtn-w4g32-ct"))), largest_block(mixture.layout)
    assert waiting(recipe, block, mixture) == pytest.approx(held(recipe, mixture, calibration[:2, :64], tmp_path, monkeypatch), rel=0.04)
    assert waiting(recipe, block, mixture) > 1.8 * waiting(FOUR, block, mixture)
    assert waiting(of_experts(mixture, HALF), block, mixture) == waiting(FOUR, block, mixture)  # of the blocks before


def test_a_dense_block_has_none(tiny: OpenedModel) -> None:
    assert all(waiting(recipe, largest_block(tiny.layout), tiny) == 0 for recipe in (FOUR, NF4(), GGUF()))


def test_a_sequential_recipe_runs_the_block_beside_them(mixture: OpenedModel) -> None:
    alone, after = (predict(mixture, [parse(name)], WINDOWS) for name in ("gptq-w4g32", "gptq-w4g32-sequential"))
    encoded = waiting(parse("gptq-w4g32"), largest_block(mixture.layout), mixture)
    assert encoded > 0
    assert after.activations - alone.activations == pytest.approx(encoded)
    assert after.recipe == alone.recipe


def test_before_widths_are_chosen_experts_may_be_as_wide_as_there_is_room_for(tmp_path: Path) -> None:
    source = make(tmp_path / "model", FAMILIES["mixtral"])
    layers = [name.removesuffix(".weight") for name in source.layout.linear]
    experts = [name for name in layers if ".experts." in name]
    for bits, width in ((4.7, 4), (6.8, 8), (20.0, 8)):  # a block's experts are 44 % of all weights, and scales take half a bit
        found = widest(source, FOUR, of_bits(bits), (4, 8, HALF), {})
        assert {found.width(name) for name in experts} == {width}, bits
    fixed = widest(source, FOUR, of_bits(20.0), (4, 8), {r"layers\.1\..*experts": 3})
    assert {fixed.width(name) for name in experts if ".layers.1." in name} == {3}
    narrow, wide = (predict(source, [widest(source, FOUR, of_bits(bits), (4, 8), {})], WINDOWS) for bits in (4.7, 20.0))
    assert wide.recipe > narrow.recipe
