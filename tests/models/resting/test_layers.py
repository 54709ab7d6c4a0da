"""A model at rest computes what the whole model in FP32 does, to the bit, and takes half the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qlab.models.loading import load
from qlab.models.opening import OpenedModel, decoder_layers, locate
from qlab.models.resting.choosing import IN_MEMORY, ON_DEVICE
from qlab.models.resting.layers import Resting, at_rest, device_of, set_aside, standing_in
from tests.bench.made_up import make_checkpoint

SHAPE = {"layers": 2, "hidden": 64, "mlp": 128, "heads": 4, "kv_heads": 2}


@pytest.fixture(scope="module", params=["tied", "untied, biases", "experts", "single precision"])
def source(request: pytest.FixtureRequest, tiny: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    folder = tmp_path_factory.mktemp("resting") / "model"
    if request.param == "tied":
        return tiny
    if request.param == "experts":
        return locate(str(make_checkpoint(folder, **SHAPE, kind="mixtral", experts=2, dtype=torch.bfloat16)))
    dtype = torch.float32 if request.param == "single precision" else torch.bfloat16
    return locate(str(make_checkpoint(folder, **SHAPE, kind="qwen2", dtype=dtype)))


@torch.inference_mode()
def logits(model: nn.Module, windows: Tensor) -> Tensor:
    return model(input_ids=windows, use_cache=False).logits


def written(model: PreTrainedModel, windows: Tensor) -> tuple[Tensor, ...]:
    """What the model writes behind the windows, by its cache, and the scores of each token."""
    found = model.generate(  # type: ignore[operator]
        windows, attention_mask=torch.ones_like(windows), max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    return found.sequences, *found.scores


@pytest.mark.parametrize("holding", [ON_DEVICE, IN_MEMORY])
def test_the_bits_are_those_of_the_whole_model(source: OpenedModel, holding: str, calibration: Tensor) -> None:
    whole, resting = load(source, apart=True), load(source, apart=True, holding=holding)
    assert at_rest(resting)
    assert not at_rest(whole)
    assert torch.equal(logits(resting, calibration[:3, :32]), logits(whole, calibration[:3, :32]))
    for ours, theirs in zip(written(resting, calibration[:2, :9]), written(whole, calibration[:2, :9]), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_at_rest_takes_what_its_matrices_take_as_they_are_stored(source: OpenedModel) -> None:
    whole, resting = load(source, apart=True), load(source, apart=True, holding=ON_DEVICE)
    held, full = (sum(parameter.nbytes for parameter in model.parameters()) for model in (resting, whole))
    small = 4 * sum(parameter.numel() for parameter in whole.parameters() if parameter.ndim < 2)
    single = source.checkpoint.description == "FP32"
    assert held == full if single else full / 2 <= held <= full / 2 + small
    assert resting.dtype == torch.float32
    assert resting.device == whole.device
    assert resting.num_parameters() == whole.num_parameters()
    tied = source.layout.embedding == source.layout.head
    pair = (resting.get_input_embeddings(), resting.get_output_embeddings())
    assert all(isinstance(layer, Resting) for layer in pair)
    assert (pair[0]._parameters["weight"] is pair[1]._parameters["weight"]) == tied


def test_a_layer_s_weight_is_single_precision_for_who_asks(tiny: OpenedModel) -> None:
    whole, resting = load(tiny, apart=True), load(tiny, apart=True, holding=ON_DEVICE)
    layers = decoder_layers(resting)
    assert list(layers) == list(decoder_layers(whole))
    for name, layer in layers.items():
        assert layer.weight.data.dtype == torch.float32
        assert torch.equal(layer.weight.data, whole.get_parameter(f"{name}.weight"))
        assert next(layer.parameters()).dtype == torch.float16
        assert device_of(layer) == torch.device("cpu")


@pytest.mark.parametrize("holding", ["whole", ON_DEVICE])
def test_a_weight_stands_in_for_a_layer_s_own(tiny: OpenedModel, holding: str, calibration: Tensor) -> None:
    model = load(tiny, apart=True, holding=holding)
    layer, before = model.get_submodule("model.layers.0.mlp.up_proj"), logits(model, calibration[:1])
    exact = layer.weight.data.clone()  # type: ignore[union-attr, operator]
    with standing_in(layer, exact + 0.1234567):
        assert torch.equal(layer.weight.data, exact + 0.1234567)  # type: ignore[arg-type, union-attr]
        assert not torch.equal(logits(model, calibration[:1]), before)
    assert torch.equal(logits(model, calibration[:1]), before)


@pytest.mark.parametrize("quick", [False, True])
def test_gradients_of_what_lies_before_a_layer_are_the_whole_layer_s(tiny: OpenedModel, quick: bool) -> None:
    found = []
    for holding in ("whole", ON_DEVICE):
        layer = load(tiny, apart=True, holding=holding).get_submodule("model.layers.1.mlp.down_proj")
        inputs = torch.linspace(-1, 1, 3 * 512).view(1, 3, 512).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=quick):
            outputs = layer(inputs)
        outputs.float().square().sum().backward()
        found.append((outputs, inputs.grad))
    assert found[0][0].dtype == (torch.bfloat16 if quick else torch.float32)
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("quick", [False, True])
def test_gradients_go_through_what_stands_in_for_a_weight(tiny: OpenedModel, quick: bool) -> None:
    layer: Any = load(tiny, apart=True, holding=ON_DEVICE).get_submodule("model.layers.1.mlp.down_proj")
    inputs, other = torch.linspace(-1, 1, 3 * 512).view(1, 3, 512).requires_grad_(), layer.weight.data / 2
    with standing_in(layer, other), torch.autocast("cpu", torch.bfloat16, enabled=quick):
        outputs = layer(inputs)
        outputs.float().sum().backward()
    dtype = torch.bfloat16 if quick else torch.float32
    assert torch.equal(inputs.grad, (torch.ones_like(outputs) @ other.to(dtype)).float())  # type: ignore[arg-type]


def test_what_multiplies_in_bf16_is_never_single_precision(tiny: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    layer: Any = load(tiny, apart=True, holding=ON_DEVICE).get_submodule("model.layers.1.mlp.down_proj")
    made, widened = [], layer.widened

    def watched(stored: Tensor, dtype: torch.dtype) -> Tensor:
        made.append(dtype)
        return widened(stored, dtype)

    monkeypatch.setattr(layer, "widened", watched)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(1, 3, 512, requires_grad=True)).sum().backward()
    assert made == [torch.bfloat16, torch.bfloat16]  # there and back


def test_what_is_aside_is_there_again(tiny: OpenedModel, calibration: Tensor) -> None:
    model = load(tiny, apart=True, holding=ON_DEVICE)
    before = logits(model, calibration[:1])
    with pytest.raises(ZeroDivisionError), set_aside(model):
        1 / 0  # noqa: B018
    assert torch.equal(logits(model, calibration[:1]), before)


@pytest.mark.gpu
@pytest.mark.parametrize("holding", [ON_DEVICE, IN_MEMORY])
def test_on_a_gpu_it_leaves_its_room_to_others(tiny: OpenedModel, holding: str, calibration: Tensor, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    whole, model = load(tiny, device="cuda", apart=True), load(tiny, device="cuda", apart=True, holding=holding)
    windows = calibration[:2].cuda()
    before = logits(model, windows)
    assert torch.equal(before, logits(whole, windows))
    places = {layer._parameters["weight"].device.type for layer in decoder_layers(model).values()}  # type: ignore[union-attr]
    assert places == {"cuda" if holding == ON_DEVICE else "cpu"}
    held = torch.cuda.memory_allocated()
    with set_aside(model):
        assert torch.cuda.memory_allocated() <= held - 2 * 4096 * 256
    assert torch.equal(logits(model, windows), before)
