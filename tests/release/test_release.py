"""From a domain's text to a served model, end to end on the embedded model; and what must not get there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.cli import call
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.windows import read_windows
from qlab.recipes import parse
from qlab.release.adapter import WEIGHTS, merge
from qlab.release.finetune import Training, finetune
from qlab.release.history import history
from qlab.release.release import Gate, Release, release
from qlab.serve.deployment import Deployment
from qlab.serve.rounding import Rounding
from qlab.serve.runtimes.llamacpp import LlamaCpp
from qlab.serve.server import free_port, serving
from qlab.support.errors import UserError


@pytest.fixture(scope="module")
def text() -> Tensor:
    """Of the language reference: 96 windows to train on, then some to judge by."""
    return read_windows("python-reference", load_tokenizer(locate("embedded")), 128, 128).windows


@pytest.fixture(scope="module")
def trained(text: Tensor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    out = tmp_path_factory.mktemp("trained")
    (base,) = quantize_model(locate("embedded"), [parse("nf4")], text[:2], out)
    losses = finetune(base.source, text[:96], out / "adapter", Training(rank=8, alpha=16, rate=2e-3, steps=48, batch=4))
    return out / "adapter", losses


def attempt(
    adapter: Path | None, text: Tensor, out: Path, gates: tuple[Gate, ...] = (Gate("kl", 0.2), Gate("perplexity", 0.99))
) -> Release:
    return release(locate("embedded"), adapter, parse("q4_k_m"), text[:16], text[100:], LlamaCpp(), out, gates)


def test_from_adapter_to_served_model_and_no_further_with_a_damaged_one(
    trained: tuple[Path, list[float]], text: Tensor, tmp_path: Path
) -> None:
    adapter, losses = trained
    assert sum(losses[-12:]) / 12 < sum(losses[:12]) / 12 - 0.1
    assert "base_model_name_or_path" in (adapter / "adapter_config.json").read_text()
    assert "/" not in json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]

    first = attempt(adapter, text, tmp_path / "releases")
    assert first.refused == []
    assert first.path == tmp_path / "releases/current/q4_k_m"
    assert first.figures["perplexity"] < 0.99  # it has learnt something of this text
    card = (first.path / "README.md").read_text()
    assert "# embedded as q4\\_k\\_m" in card
    assert "| adapter merged into it | LoRA, fingerprint" in card
    assert f"| {first.figures['perplexity']:.4g} |" in card
    with serving(LlamaCpp(), Deployment(locate(str(first.path)).path, "domain", 256, 1, port=free_port())) as server:
        assert server.alive

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: -4 * tensor if "lora_B" in name else tensor for name, tensor in tensors.items()}, damaged / WEIGHTS)
    second = attempt(damaged, text, tmp_path / "releases")
    assert second.path is None
    assert any(reason.startswith("perplexity") for reason in second.refused)
    assert (tmp_path / "releases/current").resolve().name == first.id
    assert [entry["refused"] == [] for entry in history(tmp_path / "releases")] == [True, False]
    assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == sorted([first.id, "current", "history.jsonl"])


def test_a_server_that_fails_its_proof_is_refused(text: Tensor, tmp_path: Path) -> None:
    class Strict(LlamaCpp):
        def rounding(self, deployment: Deployment) -> Rounding:
            """None: so it says, and its answers tell otherwise."""
            return nullcontext

    found = release(locate("embedded"), None, parse("q8_0"), text[:2], text[100:], Strict(), tmp_path / "out", [Gate("kl", 1.0)])
    assert found.refused
    assert found.refused[0].startswith("greedy tokens are the artifact's")
    assert not (tmp_path / "out/current").exists()


def test_merging_adds_the_product_and_refuses_what_is_damaged(
    trained: tuple[Path, list[float]], tiny: OpenedModel, text: Tensor, tmp_path: Path
) -> None:
    adapter, _ = trained
    merge(locate("embedded"), adapter, tmp_path)
    before, after = load(locate("embedded")).state_dict(), load(locate(str(tmp_path))).state_dict()
    tensors, name = load_file(adapter / WEIGHTS), "model.layers.1.mlp.up_proj"
    product = 2 * tensors[f"base_model.model.{name}.lora_B.weight"] @ tensors[f"base_model.model.{name}.lora_A.weight"]
    assert product.abs().max() > 1e-3
    torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + product, atol=1e-3, rtol=1e-3)
    assert load_tokenizer(locate(str(tmp_path))).encode("return") == load_tokenizer(locate("embedded")).encode("return")
    with pytest.raises(UserError, match="is no adapter of"):
        merge(tiny, adapter, tmp_path / "other")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    with pytest.raises(UserError, match=f"has no {WEIGHTS}"):
        attempt(bad, text, tmp_path / "out")
    (bad / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        attempt(bad, text, tmp_path / "out")
    save_file(tensors | {next(iter(tensors)): next(iter(tensors.values())) / 0}, bad / WEIGHTS)
    with pytest.raises(UserError, match="not finite"):
        attempt(bad, text, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_merged_in_the_precision_of_its_model(trained: tuple[Path, list[float]], tmp_path: Path) -> None:
    """A model that is marked BF16, and whose norm is beyond FP16, stays so."""
    folder = tmp_path / "bf16"
    shutil.copytree(locate("embedded").path, folder)
    state = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    state["model.norm.weight"] = torch.full_like(state["model.norm.weight"], 1e5)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    merge(locate(str(folder)), trained[0], tmp_path / "merged")
    merged = locate(str(tmp_path / "merged"))
    assert merged.trained_in == torch.bfloat16
    assert load_file(merged.path / "model.safetensors")["model.norm.weight"].max() > 65504


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    """Whatever libraries say as they are imported: bitsandbytes warns where the processor has AVX512-BF16."""
    command = [sys.executable, "-m", "qlab", "release", "--out", str(tmp_path / "out"), "--gate", "kl=low"]
    refused = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "500"})
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1, refused.stderr


def test_gates_and_wrong_inputs(tiny: OpenedModel, text: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Gate.parse("top1=0.9").passes(0.95)
    assert not Gate.parse("kl=0.1").passes(0.2)
    for wrong in ("speed=1", "kl", "kl=-1", "kl=nan"):
        with pytest.raises(UserError, match="gate"):
            Gate.parse(wrong)
    with pytest.raises(UserError, match="is not in NF4"):
        finetune(tiny, text[:2], tmp_path / "adapter", Training(steps=1))
    with pytest.raises(UserError, match="serves gguf"):
        release(tiny, None, parse("nf4"), text[:2], text[2:4], LlamaCpp(), tmp_path / "out")
    assert call(["release", "--out", str(tmp_path / "out"), "--gate", "kl=low"]) == 2
    assert "kl=low" in capsys.readouterr().err
    assert call(["release", "--out", str(tmp_path / "out"), "--adapter", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "out").exists()
