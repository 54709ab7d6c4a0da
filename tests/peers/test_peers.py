"""The libraries quantize for real, on this machine, and what they write is read back by qlab."""

from __future__ import annotations

import contextlib

import pytest
import torch

from qlab.artifact import Artifact, make_artifact
from qlab.evaluate.quality import measure_quality
from qlab.model import Source, load
from qlab.peers import autoawq, autogptq
from qlab.peers.patching import patched
from qlab.peers.recipes import AutoAWQ, AutoGPTQ, BitsAndBytes
from qlab.recipes import Recipe

RECIPES = [AutoAWQ(), AutoGPTQ(), AutoGPTQ(symmetric=False, act_order=True), BitsAndBytes(), BitsAndBytes(double_quantization=False)]


@pytest.fixture(scope="module")
def artifacts(tiny: Source, calibration: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    work = str(tmp_path_factory.mktemp("work"))
    return {recipe.name: make_artifact(recipe, tiny, calibration, work) for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_checkpoint_is_near_the_original_and_not_it(recipe: Recipe, artifacts: dict[str, Artifact], tiny: Source) -> None:
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
