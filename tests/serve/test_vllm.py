"""Our AWQ and GPTQ checkpoints in vLLM: they load unchanged, and it says what the dequantized weights say in transformers.

vLLM needs gigabytes and other versions than qlab, so it lives in an environment of its own, and these run only where that has been made.
Broken checkpoints go through it with the good ones: the comparison must see them. What vLLM refuses is held fast by its own words.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlab import ROOT
from qlab.artifacts.artifact import quantize_model
from qlab.formats import awq
from qlab.formats.packing import pack_words, unpack_words
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.windows import read_windows
from qlab.recipes import parse
from qlab.serve.deployment import Deployment
from qlab.serve.proof import PROMPTS, Agreement, compare
from qlab.serve.runtimes.vllm import VLLM, dtype, has_kernels
from tests.walk.families import FAMILIES, make

PYTHON = ROOT / ".venv-vllm/bin/python"
pytestmark = pytest.mark.skipif(
    not (PYTHON.parent.parent / ".ready").exists() or not has_kernels(),
    reason="needs vLLM, in an environment of its own (make vllm), and a processor that it has kernels for",
)

TOKENS = 32
SERVED = [
    "rtn-w4g128", "awq-w4g128", "awq-w4g32", "awq-w4grow", "awq-gptq-w4g128", "tuned-w4g128-steps4",
    "gptq-w4g128", "gptq-w4g32", "gptq-w4grow",
    "awq-w4g128-ct", "gptq-w4g128-asym-ct", "gptq-w4g32-ct", "gptq-w4grow-ct", "smooth-gptq-w8a8", "smooth-gptq-w8a8-static",
    "rtn-fp8", "rtn-fp8-b128",
]  # fmt: skip
KERNELS = {  # on a CPU, of what is not weights alone; FP8's is within its scheme
    "smooth-gptq-w8a8": "CPUInt8ScaledMMLinearKernel", "smooth-gptq-w8a8-static": "CPUInt8ScaledMMLinearKernel",
    "rtn-fp8": "CompressedTensorsW8A8Fp8", "rtn-fp8-b128": "CompressedTensorsW8A8Fp8",
}  # fmt: skip
MIXED = ["awq-w4g128", "gptq-w4g128"]
SECOND = ["awq-w4g128", "tuned-w4g128-steps4", "gptq-w4g128"]
REFUSED = {
    "gptq-w4g128-asym-actorder": "desc_act=True) is no longer supported",
    "gptq-w4g128-actorder": "desc_act=True) is no longer supported",
    "gptq-w4g128-asym": "Unsupported quantization config: bits=4, sym=False",
    "gptq-w3g128": "Unsupported quantization config: bits=3, sym=True",
    "gptq-w8g128": "Marlin does not support weight_bits = uint8b128",  # on a CPU only
    "gptq-w8g128-ct": "Quant type (uint8b128) not supported by CPUWNA16",  # likewise
}


def in_vllm(checkpoints: dict[str, Path], prompts: list[list[int]], work: Path) -> dict[str, Any]:
    """What tests/serve/vllm_generate.py answers."""
    request, answer = work / "request.json", work / "answer.json"
    folders = {name: str(folder) for name, folder in checkpoints.items()}
    dtypes = {name: dtype(Deployment(folder, "model")) for name, folder in checkpoints.items()}
    request.write_text(json.dumps({"checkpoints": folders, "dtypes": dtypes, "prompts": prompts, "tokens": TOKENS, "length": 128}))
    settings = {
        "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(work / "cache"), "VLLM_CONFIG_ROOT": str(work / "config"),  # nothing outside `work`
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the script's own process, which ends it however it ends
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [str(PYTHON), str(ROOT / "tests/serve/vllm_generate.py"), str(request), str(answer)]
    done = subprocess.run(command, env=os.environ | settings, cwd=work, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answer.read_text())


LAYER = "model.layers.1.mlp.up_proj"


def awq_packed_in_order(state: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    state[f"{LAYER}.qweight"] = pack_words(unpack_words(state[f"{LAYER}.qweight"], 4, awq.ORDER), 4)


def awq_zeros_less_one(state: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    """As GPTQ's version 1 stores them."""
    state[f"{LAYER}.qzeros"] -= 0x11111111


def gptq_nibbles_reversed(state: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    state[f"{LAYER}.qweight"] = pack_words(unpack_words(state[f"{LAYER}.qweight"].T, 4), 4, (7, 6, 5, 4, 3, 2, 1, 0)).T.contiguous()


def order_hidden(state: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    """vLLM then takes scattered groups for consecutive ones."""
    quantization["desc_act"] = False


def said_to_be_symmetric(state: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    """vLLM then never looks at the zero points."""
    quantization["sym"] = True


Change = Callable[[dict[str, Tensor], dict[str, Any]], None]
BROKEN: dict[Change, str] = {
    awq_packed_in_order: "awq-w4g128",
    awq_zeros_less_one: "awq-w4g128",
    gptq_nibbles_reversed: "gptq-w4g128",
    order_hidden: "gptq-w4g128-actorder",
    said_to_be_symmetric: "gptq-w4g128-asym",
}


def broken(checkpoint: Path, change: Change, out: Path) -> Path:
    shutil.copytree(checkpoint, out)
    state, config = load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())
    change(state, config["quantization_config"])
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    return out


@dataclass(frozen=True)
class Run:
    """A model's artifacts by recipe, and vLLM's answers by recipe or by the name of what was broken."""

    prompts: list[list[int]]
    artifacts: dict[str, OpenedModel]
    device: str
    answers: dict[str, dict[str, Any]]

    def agreement(self, answer: str, recipe: str) -> Agreement:
        """What vLLM answered, against the weights of `recipe`'s artifact."""
        given = self.answers[answer]
        deployment = Deployment(self.artifacts[recipe].folder, "model")
        rounding = VLLM().rounding(deployment)
        return compare(load(self.artifacts[recipe]), self.prompts, given["tokens"], given["logprobs"], rounding)


def run(source: OpenedModel, recipes: list[str], changes: dict[Change, str], work: Path) -> Run:
    tokenizer = load_tokenizer(source)
    calibration = read_windows("docstrings", tokenizer, 128, 8).windows
    made = quantize_model(source, [parse(name) for name in recipes], calibration, work / "made")
    folders = {artifact.path.name: artifact.path for artifact in made}
    folders |= {change.__name__: broken(folders[recipe], change, work / change.__name__) for change, recipe in changes.items()}
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    found = in_vllm(folders, prompts, work)
    return Run(prompts, {artifact.path.name: artifact.source for artifact in made}, found["device"], found["checkpoints"])


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(locate("embedded"), [*SERVED, *REFUSED], BROKEN, tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="module")
def second(second_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(locate(str(second_model)), SECOND, {}, tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Run:
    work = tmp_path_factory.mktemp("mixture")
    wide = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "head_dim": 64}
    family = FAMILIES["qwen3_moe"]
    return run(make(work / "source", replace(family, options=family.options | wide)), MIXED, {}, work)


@pytest.mark.parametrize(("served", "other"), [MIXED, MIXED[::-1]])
def test_vllm_reads_each_expert_of_a_mixture(mixture: Run, served: str, other: str) -> None:
    # Its kernel for experts rounds more than the proof allows, and may choose another expert; a wrong layout is far beyond that.
    own = mixture.agreement(served, served)
    assert own.in_context > 0.9
    assert 10 * own.error < mixture.agreement(served, other).error


@pytest.mark.parametrize("recipe", SERVED)
def test_vllm_says_what_the_dequantized_weights_say(embedded: Run, recipe: str) -> None:
    found = embedded.agreement(recipe, recipe)
    assert found.holds, found
    assert embedded.device != "cpu" or embedded.answers[recipe]["kernels"] == [KERNELS.get(recipe, "CPUWNA16LinearKernel")]


@pytest.mark.parametrize("recipe", SECOND)
def test_with_biases_and_another_architecture_too(second: Run, recipe: str) -> None:
    found = second.agreement(recipe, recipe)
    assert found.holds, found


@pytest.mark.parametrize(("served", "other"), [("awq-w4g128", "gptq-w4g128"), ("gptq-w4g128", "gptq-w4g32"), ("awq-w4g128", "awq-w4g32")])
def test_another_artifact_is_told_apart(embedded: Run, served: str, other: str) -> None:
    found = embedded.agreement(served, other)
    assert not found.holds, found


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_broken_artifact_is_told_apart(embedded: Run, change: Change) -> None:
    found = embedded.agreement(change.__name__, BROKEN[change])
    assert not found.holds, found


@pytest.mark.parametrize("recipe", REFUSED)
def test_what_vllm_refuses_it_refuses_by_name(embedded: Run, recipe: str) -> None:
    if recipe == "gptq-w8g128" and embedded.device != "cpu":
        assert embedded.agreement(recipe, recipe).holds
    else:
        assert REFUSED[recipe] in embedded.answers[recipe]["error"]
