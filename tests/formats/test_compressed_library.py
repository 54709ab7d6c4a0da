"""Every form in which qlab writes compressed-tensors, against the library that owns the format: its own decompression, to the bit.

The library is part of vLLM's environment, whose versions are not qlab's, so it runs in a process of that environment.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qlab import ROOT
from qlab.artifacts.artifact import quantize_model
from qlab.formats.compressed_tensors.rounding import rounding_of
from qlab.formats.compressed_tensors.scheme import inputs_of
from qlab.models.opening import OpenedModel
from qlab.recipes import parse
from qlab.recipes.mixed import check_mixable, mixed

PYTHON = ROOT / ".venv-vllm/bin/python"
pytestmark = pytest.mark.skipif(
    not (PYTHON.parent.parent / ".ready").exists(), reason="needs the compressed-tensors library, in vLLM's environment (make vllm)"
)

# Of 2, 4 and 8 bits: how other widths lie in words changed between the library's versions 0.17, which vLLM 0.32 has, and 0.20, which qlab
# follows (one stream of bits a row).
RECIPES = [
    "gptq-w4g128-ct", "awq-w4g64-ct", "gptq-w4g64-asym-actorder-ct", "rtn-w4grow-sym-ct", "rtn-w2g32-ct", "rtn-w8g128-sym-ct",
    "rtn-w8grow-ct", "smooth-rtn-w8a8", "smooth-rtn-w8a8-static", "rtn-fp8", "rtn-fp8-b128",
]  # fmt: skip
# Not integers by token: the library takes the largest for 127.5 steps, vLLM's kernels, which serve them, for 127.
ROUNDED = ["rtn-fp8", "rtn-fp8-b128", "smooth-rtn-w8a8-static"]
WIDE = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
MIXED = mixed(check_mixable(parse("rtn-w4g64-sym-ct")), dict.fromkeys(WIDE, 8) | {"model.layers.0.mlp.down_proj": 2}, "4.5")


@dataclass(frozen=True)
class Answer:
    """Artifacts by recipe, and what the library makes of each: tensors by name, and the layers that it takes for quantized."""

    artifacts: dict[str, OpenedModel]
    tensors: dict[str, dict[str, Tensor]]
    quantized: dict[str, list[str]]


@pytest.fixture(scope="module")
def answer(tiny: OpenedModel, calibration: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    work = tmp_path_factory.mktemp("compressed")
    recipes = [*map(parse, RECIPES), MIXED]
    made = {artifact.path.name: artifact.source for artifact in quantize_model(tiny, recipes, calibration, work)}
    request, out = work / "request.json", work / "out"
    out.mkdir()
    request.write_text(json.dumps({"checkpoints": {name: str(source.folder) for name, source in made.items()}, "out": str(out)}))
    command = [str(PYTHON), str(ROOT / "tests/formats/compressed_library.py"), str(request)]
    settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, env=os.environ | settings, cwd=work, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads((out / "answer.json").read_text())
    return Answer(made, {name: load_file(out / f"{name}.safetensors") for name in made}, told["quantized"])


@pytest.mark.parametrize("recipe", [*RECIPES, MIXED.name])
def test_the_library_decompresses_what_qlab_reads(answer: Answer, recipe: str) -> None:
    checkpoint = answer.artifacts[recipe].checkpoint
    assert set(checkpoint.quantized_names()) == {f"{layer}.weight" for layer in answer.quantized[recipe]}
    assert len(answer.quantized[recipe]) == 14
    for layer in answer.quantized[recipe]:
        theirs = answer.tensors[recipe][f"{layer}.weight"]
        assert torch.equal(theirs.float(), checkpoint.read(f"{layer}.weight").float()), layer


@pytest.mark.parametrize("recipe", ROUNDED)
def test_the_library_rounds_activations_as_qlab_does(answer: Answer, recipe: str) -> None:
    source, tensors = answer.artifacts[recipe], answer.tensors[recipe]
    first = answer.quantized[recipe][0]
    asked = inputs_of(first, source.config["quantization_config"])
    assert asked is not None
    # the library multiplies by scales that it computes with other operations: the last bit of some may differ
    ours = rounding_of(asked, recipe, source.checkpoint.input_scale(first))(tensors["INPUTS"])
    assert torch.allclose(ours, tensors["ROUNDED"], rtol=1e-6, atol=0)
    assert not torch.equal(ours, tensors["INPUTS"])
