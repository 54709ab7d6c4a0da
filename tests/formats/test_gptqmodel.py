"""Our AWQ and GPTQ checkpoints in transformers itself, which loads them through gptqmodel, as their users will.

gptqmodel takes minutes to build and is no dependency of qlab, so these run only where it has been installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlab.formats import awq, gptq
from qlab.methods.grid import GroupedIntegers
from qlab.methods.rtn import rtn
from qlab.models.opening import OpenedModel, decoder_layers
from tests.formats.checkpoints import dense_model, logits, quantized, scattered

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gptqmodel") is None or importlib.util.find_spec("optimum") is None,
    reason="needs gptqmodel: pip install --no-build-isolation gptqmodel==7.6.0 optimum==2.3.0 torch==2.13.0 numpy==2.2.6",
)


def loaded(folder: Path) -> torch.nn.Module:
    """The checkpoint as transformers opens it; every decoder layer must have become one of gptqmodel's."""
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu").eval()
    kinds = {type(module).__module__.split(".")[0] for name, module in model.named_modules() if name.endswith("_proj")}
    assert kinds == {"gptqmodel"}
    assert not decoder_layers(model)
    return model


def agree(ours: torch.Tensor, expected: torch.Tensor, bits: int) -> None:
    """FP16 arithmetic, but at 4 bits: there torch's _weight_int4pack_mm multiplies in BF16 on a CPU, whatever dtype was asked for."""
    error = float((ours - expected).norm() / expected.norm())
    assert error < (1e-2 if bits == 4 else 2e-3)


@pytest.mark.parametrize("size", [32, 64, 128])  # that CPU kernel knows no larger groups than 256, and so no whole rows
def test_transformers_runs_our_awq(tiny: OpenedModel, tmp_path: Path, size: int) -> None:
    def quantize(weight: torch.Tensor) -> GroupedIntegers:
        return rtn(weight, 4, size)

    folder = quantized(tiny, tmp_path / "awq", awq.quantization_config(size, ["lm_head"]), quantize, awq.pack)
    agree(logits(loaded(folder)), logits(dense_model(tiny, quantize)), 4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "scattered"])
def test_transformers_runs_our_gptq(tiny: OpenedModel, tmp_path: Path, bits: int, version: int, kind: str) -> None:
    def quantize(weight: torch.Tensor) -> GroupedIntegers:
        tensor = rtn(weight, bits, 64, symmetric=kind == "symmetric")
        return scattered(tensor) if kind == "scattered" else tensor

    entry = gptq.quantization_config(bits, 64, kind == "symmetric", act_order=kind == "scattered", version=version)
    folder = quantized(tiny, tmp_path / "gptq", entry, quantize, lambda tensor: gptq.pack(tensor, version))
    agree(logits(loaded(folder)), logits(dense_model(tiny, quantize)), bits)
