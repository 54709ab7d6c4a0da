"""The libraries quantize for real, on this machine, and what they write is read back by qlab."""

from __future__ import annotations

import contextlib
import sys

import psutil
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from qlab.artifacts.artifact import Artifact, make_artifact
from qlab.evaluate.quality import measure_quality
from qlab.formats.gguf.block_bytes import byte_tensor
from qlab.methods.kquants.blocks import encode
from qlab.methods.kquants.kinds import KINDS
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.peers import autoawq, autogptq, llamacpp
from qlab.peers.patching import patched
from qlab.peers.recipes import AutoAWQ, AutoGPTQ, BitsAndBytes, LlamaCpp
from qlab.recipes import Recipe
from qlab.support.errors import UserError

RECIPES = [
    AutoAWQ(),
    AutoGPTQ(),
    AutoGPTQ(symmetric=False, act_order=True),
    BitsAndBytes(),
    BitsAndBytes(double_quantization=False),
    LlamaCpp(),
]


@pytest.fixture(scope="module")
def artifacts(tiny: OpenedModel, calibration: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    work = str(tmp_path_factory.mktemp("work"))
    return {recipe.name: make_artifact(recipe, tiny, calibration, work) for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_checkpoint_is_near_the_original_and_not_it(recipe: Recipe, artifacts: dict[str, Artifact], tiny: OpenedModel) -> None:
    windows = torch.randint(1, 4096, (2, 64), generator=torch.Generator().manual_seed(3))
    quality = measure_quality(load(artifacts[recipe.name].source), windows, load(tiny))
    assert 1e-8 < quality.kl < 0.01
    # A tied embedding may be stored twice; the decoder's linear layers must have become small all the same.
    embedding = 2 * 4096 * 256
    assert artifacts[recipe.name].disk_bytes - 2 * embedding < 0.4 * ((tiny.path / "model.safetensors").stat().st_size - embedding)


@pytest.mark.parametrize(
    ("name", "running"),
    [("autoawq-w4g128", autoawq.running), ("autogptq-w4g128", autogptq.running), ("autogptq-w4g128-asym-actorder", autogptq.running)],
)
def test_the_librarys_own_layers_agree_with_our_reading(name: str, running, artifacts: dict[str, Artifact]) -> None:  # type: ignore[no-untyped-def]
    """The strongest check of an unpacking: the library's forward pass on its own checkpoint."""
    window = torch.randint(1, 4096, (1, 32), generator=torch.Generator().manual_seed(4))
    ours = load(artifacts[name].source)(input_ids=window).logits
    with running(artifacts[name].path) as model, torch.inference_mode():
        theirs = model(input_ids=window).logits.float()
    assert (ours - theirs).abs().max() < 0.02 * ours.abs().max()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which files are mapped")
def test_autogptqs_model_is_in_memory_and_no_view_of_its_file(artifacts: dict[str, Artifact]) -> None:
    folder = artifacts["autogptq-w4g128"].path
    with autogptq.running(folder) as model:
        held = next(module for module in model.modules() if hasattr(module, "qweight"))
        assert held.qweight.numel()
        assert not any(str(folder) in mapped.path for mapped in psutil.Process().memory_maps())


def test_the_shim_undoes_itself() -> None:
    import transformers.modeling_utils
    import transformers.utils.hub as hub

    with autogptq.revived():
        assert hasattr(hub, "create_repo")
    assert not hasattr(hub, "create_commit")
    assert not hasattr(transformers.modeling_utils, "no_init_weights")


def test_patches_are_undone_also_after_an_error() -> None:
    class Target:
        kept = 1

    seen = None
    with contextlib.suppress(ZeroDivisionError), patched((Target, "kept", 2), (Target, "new", 3)):
        seen = (Target.kept, Target.new)
        raise ZeroDivisionError
    assert seen == (2, 3)
    assert Target.kept == 1
    assert not hasattr(Target, "new")


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_our_blocks_are_as_near_as_llamacpps_own(kind: str, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(64, 1024, generator=generator) * 0.02 * (1 + 3 * torch.rand(64, 1, generator=generator))
    importance = torch.rand(1024, generator=generator).pow(3) + 0.01 if weighted and kind != "Q8_0" else None
    own, its = byte_tensor(encode(weight, kind, importance)), llamacpp.encode_rows(weight, kind, importance)
    if kind in ("Q4_0", "Q5_0", "Q5_1", "Q8_0") and importance is None:
        assert torch.equal(own, its)  # nothing is searched here
        return

    def error(stored: torch.Tensor) -> float:
        decoded = torch.from_numpy(dequantize(stored.numpy(), GGMLQuantizationType[kind]))
        return float(((decoded - weight).square() * (1 if importance is None else importance)).mean())

    assert error(own) < 1.04 * error(its)


def test_llamacpps_quantizer_refuses_what_its_blocks_do_not_divide() -> None:
    with pytest.raises(UserError, match="multiple of 256"):
        llamacpp.encode_rows(torch.zeros(2, 128), "Q4_K")
    with pytest.raises(UserError, match="only qlab's settles"):
        LlamaCpp(search="settled")


def test_autoawq_clips_as_it_does_and_layers_of_any_number_of_outputs() -> None:
    """Its own search insists on multiples of 64; from the Hessian it finds the same bounds, but for ties, for any number."""
    with autoawq.imported():
        from awq.quantize.quantizer import AwqQuantizer
    quantizer = AwqQuantizer.__new__(AwqQuantizer)
    quantizer.group_size, quantizer.zero_point, quantizer.w_bit = 32, True, 4
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(128, 64, generator=draw) ** 3
    inputs = torch.randn(4, 300, 64, generator=draw) * torch.linspace(0.1, 3, 64)
    whole = quantizer._compute_best_clip(weight, inputs)
    with pytest.raises(AssertionError):
        quantizer._compute_best_clip(weight[:96], inputs)
    with autoawq.clipping_from_the_hessian():
        found = quantizer._compute_best_clip(weight, inputs)
        assert found.shape == whole.shape
        assert (found == whole).float().mean() > 0.99
        assert torch.equal(quantizer._compute_best_clip(weight[:96], inputs), found[:96])
    assert (whole.squeeze(-1) < weight.view(128, 2, 32).abs().amax(-1)).float().mean() > 0.2  # bounds that clip: the search decides
