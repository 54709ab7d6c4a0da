"""Every family of the table: what qlab makes of its checkpoint, walks over and writes is the function that transformers' class computes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.artifacts.budget import predict
from qlab.methods.nf4 import nf4
from qlab.models.experts import separate_experts
from qlab.models.layout import class_of, compute_buffers, empty_model
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.models.resting.choosing import ON_DEVICE
from qlab.plan.plan import Cached
from qlab.plan.shapes import config_shape
from qlab.recipes import NF4, Integers, parse
from qlab.walk.by_block import BlockByBlock
from qlab.walk.skeleton import Skeleton
from qlab.walk.state.activations import Activations
from tests.walk.families import FAMILIES, make

# Numbers that runtimes keep of a token in a block, where transformers keeps more: latent values and a key, or keys that queries share.
UNFOLDED = {"deepseek_v2": 48, "deepseek_v3": 48, "falcon": 2 * 2 * 16}
RECIPES = [
    "rtn-w4g32",
    "awq-w4g32-cover",
    "gptq-w4g32-cover",
    "tuned-w4g32-cover-steps2",
    "nf4",
]  # searching grids is the same on every family


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(family: str, tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return make(tmp_path_factory.mktemp("families") / family, FAMILIES[family])


@pytest.fixture(scope="module")
def whole(source: OpenedModel) -> Any:
    """The model as qlab loads it; no test changes it."""
    return load(source)


@torch.no_grad()
def logits(model: Any, windows: Tensor) -> Tensor:
    return model(input_ids=windows[:2, :32], use_cache=False).logits.float()


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm())


def test_a_checkpoint_is_read_as_transformers_reads_it_and_its_blocks_compute_the_same(
    family: str, source: OpenedModel, whole: Any, calibration: Tensor, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    assert bool(source.layout.towers) == bool(FAMILIES[family].parts)
    kind = class_of(source.configuration, source.name)
    theirs = kind.from_pretrained(source.folder, dtype=torch.float32, experts_implementation="eager").eval()
    windows = calibration[:2, :32]
    assert apart(logits(whole, windows), logits(theirs, windows)) < 1e-5
    assert apart(torch.stack(list(BlockByBlock(source, windows, place=tmp_path))), logits(theirs, windows)[:, :-1]) < 1e-5
    buffers = dict(whole.named_buffers())
    for name, buffer in theirs.named_buffers():  # of towers too, which no text goes through
        torch.testing.assert_close(buffers[name], buffer)
    skeleton, shape = Skeleton(source, "cpu"), (2, 32, source.layout.hidden)
    seen: list[Tensor] = []
    for block in theirs.get_submodule(source.layout.blocks):
        block.register_forward_hook(lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output))
    with torch.no_grad():
        theirs(input_ids=windows, use_cache=False)
    hidden = Activations(tmp_path / "0", shape)
    skeleton.embed(windows, hidden)
    largest = 0.0
    for index, expected in enumerate(seen):
        block = skeleton.block(index, 32)
        found = torch.cat(list(block.outputs(hidden, 1)))
        largest = max(largest, float((found - expected).norm() / expected.norm()))
        assert largest < 1e-5
        hidden = Activations(tmp_path / f"{index + 1}", shape)
        hidden.write(iter([found]))
    record_property("walk", f"{largest:.0e}")


@torch.no_grad()
def test_the_plan_counts_what_a_token_reads_and_leaves_in_the_cache(
    family: str, source: OpenedModel, whole: Any, calibration: Tensor
) -> None:
    shape = config_shape(source.config, source.name)
    assert shape.linear_parameters == sum(map(prod, source.layout.linear.values()))
    assert (shape.read_parameters < shape.linear_parameters) == FAMILIES[family].mixture
    numbers = sum(parameter.numel() for parameter in whole.parameters())
    assert 0.9 * numbers < shape.parameters < numbers
    kept = whole(input_ids=calibration[:1, :12], use_cache=True).past_key_values.layers
    for index, layer in enumerate(kept):
        block = shape.counted.cached[index] if shape.counted else Cached(2 * shape.kv_heads * shape.head_size, None, 0)
        if family in UNFOLDED:
            assert block.numbers == UNFOLDED[family]
        else:
            keys = getattr(layer, "keys", None)
            assert block.numbers * 12 == (0 if keys is None else keys.numel() + layer.values.numel())


def without_weights(source: OpenedModel) -> Any:
    """The model with its experts one by one, and room for weights."""
    model: Any = empty_model(source.configuration, source.name)
    separate_experts(model)
    model.to_empty(device="cpu")
    compute_buffers(model, model.modules(), "cpu")
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def rebuild(model: Any, source: OpenedModel, recorded: dict[str, Tensor]) -> Any:
    """Give it the weights of its blocks as they were `recorded`, and all others as they are."""
    state = model.state_dict()
    for name in source.layout.shapes:
        tensor = recorded[name] if name in recorded else source.checkpoint.read(name).float()
        state[name].copy_(tensor if name in source.layout.linear else tensor.half())
    return model


def recording(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """What each recipe made of the blocks, taken from the walk itself: by the recipe's name, tensors by theirs."""
    found: dict[str, dict[str, Tensor]] = {}
    integers, normal = Integers.quantize_block, NF4.quantize_block

    def keep(recipe: Any, block: Any, state: dict[str, Tensor]) -> None:
        found.setdefault(recipe.name, {}).update({block.prefix + name: tensor.clone() for name, tensor in state.items()})

    def record_integers(self: Any, source: OpenedModel, block: Any, calibration: Any) -> Any:
        made = integers(self, source, block, calibration)
        keep(self, block, block.module.state_dict())
        return made

    def record_normal(self: Any, source: OpenedModel, block: Any, calibration: Any) -> Any:
        state = {
            name: nf4(tensor.half(), kind=self.kind, double=self.double).dequantize()
            if name.removesuffix(".weight") in block.layers
            else tensor
            for name, tensor in block.module.state_dict().items()
        }
        keep(self, block, state)
        return normal(self, source, block, calibration)

    monkeypatch.setattr(Integers, "quantize_block", record_integers)
    monkeypatch.setattr(NF4, "quantize_block", record_normal)
    return found


def test_artifacts_are_what_the_methods_made(
    family: str,
    source: OpenedModel,
    whole: Any,
    calibration: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    original, empty = logits(whole, calibration), without_weights(source)
    recorded = recording(monkeypatch)
    made = {artifact.path.name: artifact for artifact in quantize_model(source, [parse(name) for name in RECIPES], calibration, tmp_path)}
    assert list(made) == RECIPES
    for name, artifact in made.items():
        found = logits(load(artifact.source), calibration)
        distance = apart(found, logits(rebuild(empty, source, recorded[name]), calibration))
        record_property(name, f"{distance:.0e}")
        assert distance < 1e-3
        assert 1e-3 < apart(found, original) < 0.7
        stored, layout = artifact.source.checkpoint, source.layout
        half = {f"{gate}.weight" for gate in layout.gates} | {name for name in layout.shapes if layout.beside(name)}
        assert half <= set(stored.shapes) - set(stored.quantized_names())
        kept = {layer for layer, note in artifact.manifest["notes"].items() if note.startswith("in half precision")}
        layers = {layer.removesuffix(".weight") for layer in source.layout.linear}
        assert set(artifact.errors) == layers - kept
        assert len(kept) < len(layers) / 2
    assert any("expert" in layer for layer in layers) == bool(source.layout.gates) == FAMILIES[family].mixture
    assert any("experts" in note for note in made["awq-w4g32-cover"].manifest["notes"].values()) == FAMILIES[family].mixture
    assert predict(source, [parse(name) for name in RECIPES], (8, 64)).blocks == source.layout.count


def test_a_model_at_rest_computes_the_bits_of_the_whole_one(source: OpenedModel, calibration: Tensor) -> None:
    whole, resting = load(source, apart=True), load(source, apart=True, holding=ON_DEVICE)
    assert torch.equal(logits(resting, calibration), logits(whole, calibration))
