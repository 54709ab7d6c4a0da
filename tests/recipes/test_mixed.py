"""Layers of several widths in one artifact: each is what a recipe of its width alone makes of it; the checkpoint says which is which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.formats.compressed_tensors import scheme
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.recipes import parse
from qlab.recipes.mixed import HALF, Way, check_mixable, mixed, of_one_width, offered_ways, patterns, sizes_in, stored_bits
from qlab.support.errors import UserError
from tests.walk.families import FAMILIES, make

QKV = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_each_layer_is_what_a_recipe_of_its_width_makes(method: str, tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    recipes = {bits: check_mixable(parse(f"{method}-w{bits}g64-ct")) for bits in (4, 8)}
    several = mixed(recipes[4], dict.fromkeys(QKV, 8) | {DOWN: HALF}, "5.25")
    made = {artifact.path.name: artifact for artifact in quantize_model(tiny, [several, *recipes.values()], calibration, tmp_path)}
    assert several.name == f"{method}-mixed5.25g64-ct"
    ours = made[several.name].source.checkpoint
    for name in tiny.layout.linear:
        layer = name.removesuffix(".weight")
        alone = recipes[8 if layer in QKV else 4].name
        expected = tiny.checkpoint if layer == DOWN else made[alone].source.checkpoint
        assert torch.equal(ours.read(name), expected.read(name)), name
    assert "it is to be kept" in made[several.name].manifest["notes"][DOWN]
    said = scheme.scheme_in(made[several.name].source.config["quantization_config"])
    assert {group.weights.num_bits for group in said.config_groups.values() if group.weights} == {4, 8}
    assert scheme.scheme_of(QKV[0], said).num_bits == 8
    assert scheme.scheme_of("model.layers.0.self_attn.q_proj", said).num_bits == 4
    before = (made[several.name].path / "config.json").stat().st_ino
    (again,) = quantize_model(tiny, [several], calibration, tmp_path)
    assert (again.path / "config.json").stat().st_ino == before  # what is there is not made again
    assert torch.isfinite(load(made[several.name].source)(input_ids=calibration[:1, :8]).logits).all()


def test_groups_of_several_sizes_lie_in_one_checkpoint(tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    recipes = {(bits, size): check_mixable(parse(f"gptq-w{bits}g{size}-ct")) for bits, size in ((4, 128), (4, 32), (3, 64))}
    ways = dict.fromkeys(QKV, Way(4, 32)) | {DOWN: Way(3, 64)}
    several = mixed(recipes[4, 128], ways, "4.25")
    assert several.sizes == ((DOWN, 64), *((name, 32) for name in sorted(QKV)))
    made = {artifact.path.name: artifact for artifact in quantize_model(tiny, [several, *recipes.values()], calibration, tmp_path)}
    ours = made["gptq-mixed4.25g128-ct"].source
    for name in tiny.layout.linear:
        way = ways.get(name.removesuffix(".weight"), Way(4, 128))
        assert torch.equal(ours.checkpoint.read(name), made[recipes[way].name].source.checkpoint.read(name)), name
    said = scheme.scheme_in(ours.config["quantization_config"])
    found = [scheme.scheme_of(name, said) for name in (QKV[0], DOWN, "model.layers.0.mlp.up_proj")]
    assert [(weights.num_bits, weights.group_size) for weights in found] == [(4, 32), (3, 64), (4, 128)]


def test_what_layers_are_offered() -> None:
    recipe = check_mixable(parse("gptq-w4g128-ct"))
    assert offered_ways(recipe, [4, HALF], [32, 64], [256, 512]) == [Way(4, 32), Way(4, 64), Way(4, 128), Way(HALF, 128)]
    assert offered_ways(recipe, [3], [32, 64], [256, 96]) == [Way(3, 32), Way(3, 128)]
    assert offered_ways(recipe, [3], [], [256]) == [Way(3, 128)]
    assert sizes_in(" 64,32") == [32, 64]
    assert sizes_in("") == []
    with pytest.raises(UserError, match="'48' is no group size of a layer: expected one of 128, 64, 32"):
        sizes_in("32,48")


def test_layers_that_runtimes_join_have_one_width() -> None:
    layers = [f"model.layers.{block}.{name}" for block in (0, 1) for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")]
    layers += [f"model.layers.1.mlp.experts.{number}.{name}" for number in (0, 11) for name in ("gate_proj", "down_proj")]
    assert list(of_one_width(layers).values()) == [layers[:2], layers[2:3], layers[3:5], layers[5:6], layers[6:]]


def test_patterns_fit_their_layers_alone() -> None:
    found = patterns(
        ["model.layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj", "model.layers.3.mlp.down_proj", "model.layers.3.mlp.experts.0.w1"]
    )
    assert len(found) == 2  # one for all that lies in the same blocks

    def fits(name: str) -> bool:
        return any(scheme.fits(pattern.removeprefix("re:"), name) for pattern in found)

    assert all(map(fits, ["model.layers.1.mlp.up_proj", "language_model.model.layers.11.mlp.up_proj", "model.layers.3.mlp.down_proj"]))
    assert fits("layers.3.mlp.experts.0.w1")
    wrong = ["3.mlp.up_proj", "111.mlp.up_proj", "1.mlp.up_proj2", "1.mlp.down_proj", "3.mlp.experts.1.w1", "3.mlpxdown_proj"]
    assert not any(fits(f"model.layers.{name}") for name in wrong)


def test_experts_that_files_call_otherwise_are_read_back(tmp_path: Path) -> None:
    source = make(tmp_path / "model", FAMILIES["mixtral"])
    experts = [name for name in of_one_width([name.removesuffix(".weight") for name in source.layout.linear]) if "experts" in name]
    groups = of_one_width([name.removesuffix(".weight") for name in source.layout.linear])
    recipes = {bits: check_mixable(parse(f"rtn-w{bits}g64-sym-ct")) for bits in (4, 8)}
    several = mixed(recipes[4], dict.fromkeys(groups[experts[1]], 8), "5")
    windows = torch.randint(1, 4096, (4, 32), generator=torch.Generator().manual_seed(1))
    artifacts = {
        artifact.path.name: artifact for artifact in quantize_model(source, [several, *recipes.values()], windows, tmp_path / "out")
    }
    ours = artifacts[several.name].source.checkpoint
    first = groups[experts[1]][0]
    assert source.checkpoint.stored_name(f"{first}.weight") != f"{first}.weight"
    for name in source.layout.linear:
        alone = recipes[8 if name.removesuffix(".weight") in groups[experts[1]] else 4].name
        assert torch.equal(ours.read(name), artifacts[alone].source.checkpoint.read(name)), name
    said = scheme.scheme_in(artifacts[several.name].source.config["quantization_config"])
    assert scheme.scheme_of(first, said).num_bits == 8  # as transformers asks, by its class's names
    assert sum(len(group.targets) for group in said.config_groups.values()) < 10  # however many experts there are


def test_bits_are_counted_with_scales() -> None:
    assert stored_bits(check_mixable(parse("gptq-w4g128-ct")), 8, 4096) == 8.125
    assert stored_bits(check_mixable(parse("rtn-w4g64-ct")), 4, 4096) == 4 + 20 / 64
    assert stored_bits(check_mixable(parse("gptq-w4grow-ct")), 4, 256) == 4 + 16 / 256
    assert stored_bits(check_mixable(parse("gptq-w4grow-ct")), HALF, 256) == 16
    assert stored_bits(check_mixable(parse("gptq-w4g128-ct")), Way(3, 32), 4096) == 3.5


@pytest.mark.parametrize("recipe", ["gptq-w4g128", "awq-w4g128-ct", "smooth-rtn-w8a8", "nf4"])
def test_what_cannot_be_mixed_is_refused(recipe: str) -> None:
    with pytest.raises(UserError, match="such as gptq-w4g128-ct"):
        check_mixable(parse(recipe))
