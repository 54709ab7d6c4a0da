"""The walk: several formats from one pass, and the same bytes however often it was killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import PreTrainedModel

from qlab import ROOT
from qlab.artifacts import budget
from qlab.artifacts.artifact import Artifact, quantize_model
from qlab.evaluate.quality import measure_quality
from qlab.formats.gguf.encoding import encode_rows
from qlab.methods.awq import best_scale, output_error
from qlab.methods.gptq import gptq
from qlab.methods.hessian import damp
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, decoder_layers
from qlab.recipes import Integers, parse
from qlab.support.errors import UserError
from qlab.support.precision import quick_products
from qlab.walk.folding import fold_scales
from qlab.walk.grouping import input_groups
from qlab.walk.routing import collect
from qlab.walk.skeleton import Skeleton
from qlab.walk.state.activations import Activations
from qlab.walk.statistics import Statistics
from tests.starting import Started, start

RECIPES = [
    "rtn-w4g64",
    "awq-w4g64",
    "gptq-w4g64",
    "gptq-w4g64-sequential",
    "gptq-w4g64-asym-actorder",
    "awq-gptq-w4g64",
    "tuned-w4g64-steps4",
    "gptq-w3g64",
    "nf4",
    "q4_k_m",
]


@pytest.fixture(scope="module")
def artifacts(tiny: OpenedModel, calibration: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    out = tmp_path_factory.mktemp("walked")
    made = quantize_model(tiny, [parse(name) for name in RECIPES], calibration, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(RECIPES)  # and nothing of the walk is left
    return {artifact.path.name: artifact for artifact in made}


@pytest.mark.parametrize("name", RECIPES)
def test_one_walk_makes_every_format(name: str, artifacts: dict[str, Artifact], tiny: OpenedModel) -> None:
    windows = torch.randint(1, 4096, (2, 64), generator=torch.Generator().manual_seed(3))
    quality = measure_quality(load(artifacts[name].source), windows, load(tiny))
    assert 1e-8 < quality.kl < 0.05
    assert parse(name).name == name
    assert set(artifacts[name].manifest["inputs"]) == {"model", "recipe", "calibration", "versions", "device", "methods", "products"}
    assert len(artifacts[name].errors) == 14


@pytest.mark.parametrize("name", ["gptq-w4g64", "gptq-w4g64-sequential", "tuned-w4g64-steps4"])
def test_company_in_a_walk_changes_nothing(
    name: str, artifacts: dict[str, Artifact], tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path
) -> None:
    (alone,) = quantize_model(tiny, [parse(name)], calibration, tmp_path)
    weights = [load_file(made.path / "model.safetensors") for made in (alone, artifacts[name])]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def observed_as_in_a_walk(model: PreTrainedModel, calibration: torch.Tensor) -> dict[str, Statistics]:
    """Statistics by layer from the products that a walk multiplies with: BF16 where the CPU can."""
    with quick_products(torch.device("cpu")):
        return collect(model, decoder_layers(model), calibration)


def test_gptq_trusts_as_much_of_h_as_the_tokens_tell(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    (made,) = quantize_model(tiny, [parse("gptq-w4g64-inorder-cover")], calibration, tmp_path)
    model, stored = load(tiny), load(made.source)
    name = "model.layers.1.mlp.down_proj"
    seen = observed_as_in_a_walk(model, calibration)[name]
    by_share = {
        share: gptq(decoder_layers(model)[name].weight, seen.hessian, 4, 64, True, trust=share).dequantize() for share in (seen.trust, 1.0)
    }
    same = {
        share: float((weight - decoder_layers(stored)[name].weight).abs().lt(1e-4).float().mean()) for share, weight in by_share.items()
    }
    assert seen.trust == 0.5  # 8 x 64 tokens in 512 channels
    assert same[0.5] > 0.99  # sums in another order may round a weight the other way
    assert same[1.0] < 0.9


def test_k_quants_settle_by_as_much_of_h_as_the_tokens_tell(
    artifacts: dict[str, Artifact], tiny: OpenedModel, calibration: torch.Tensor
) -> None:
    model, name = load(tiny), "model.layers.1.mlp.up_proj"
    weight, seen = decoder_layers(model)[name].weight.detach(), observed_as_in_a_walk(model, calibration)[name]
    tensors = GGUFReader(artifacts["q4_k_m"].path / "model-q4_k_m.gguf").tensors
    (stored,) = (tensor for tensor in tensors if tensor.name == "blk.1.ffn_up.weight")
    assert stored.tensor_type.name == "Q4_K"
    same = []
    for hessian in (seen.trusted, lambda: damp(seen.hessian.clone())):
        coded = encode_rows(weight, "Q4_K", seen.mean_square, hessian).flatten()
        same.append(float(coded.eq(torch.from_numpy(stored.data.copy()).flatten()).float().mean()))
    assert same[0] > 0.99
    assert same[1] < 0.9


def test_the_errors_of_a_gguf_file_are_each_layers_own(
    artifacts: dict[str, Artifact], tiny: OpenedModel, calibration: torch.Tensor
) -> None:
    model = load(tiny)
    layers, stored = decoder_layers(model), decoder_layers(load(artifacts["q4_k_m"].source))
    found = {
        name: output_error(stored[name].weight.detach(), layers[name].weight.detach(), seen.hessian)
        for name, seen in observed_as_in_a_walk(model, calibration).items()
    }
    assert artifacts["q4_k_m"].errors == pytest.approx(found, rel=0.02)


def test_what_follows_quantized_blocks_differs_from_what_follows_the_original(artifacts: dict[str, Artifact]) -> None:
    codes = [load_file(artifacts[name].path / "model.safetensors") for name in ("gptq-w4g64", "gptq-w4g64-sequential")]
    first, second = (f"model.layers.{block}.mlp.up_proj.qweight" for block in (0, 1))
    assert torch.equal(codes[0][first], codes[1][first])  # nothing is quantized before it
    assert not torch.equal(codes[0][second], codes[1][second])


def test_tuning_that_does_not_follow_is_refused() -> None:
    with pytest.raises(UserError, match="always sequential"):
        Integers("tuned", order="group")


def test_the_skeleton_computes_what_the_model_computes(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    skeleton, model = Skeleton(tiny, "cpu"), load(tiny)
    hidden = Activations(tmp_path / "hidden", (8, 64, 256))
    skeleton.embed(calibration, hidden)
    with torch.no_grad():
        expected = model(calibration, output_hidden_states=True).hidden_states
    assert torch.equal(hidden.pick(torch.arange(8)), expected[0])
    block = skeleton.block(0, 64)
    assert torch.allclose(torch.cat(list(block.outputs(hidden, 3))), expected[1], atol=1e-5)


def test_folding_changes_weights_and_not_the_function(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    skeleton = Skeleton(tiny, "cpu")
    hidden = Activations(tmp_path / "hidden", (8, 64, 256))
    skeleton.embed(calibration, hidden)
    block = skeleton.block(0, 64)
    block.groups = input_groups(block, hidden.pick(torch.arange(1)))
    assert [group.norm for group in block.groups] == ["input_layernorm", None, "post_attention_layernorm", None]
    before = torch.cat(list(block.outputs(hidden, 4)))
    statistics = block.observe(hidden, 4)
    whole = block.observe(hidden, 4, Activations(tmp_path / "outputs.bin", hidden.shape))  # not stopped at the last layer
    assert all(torch.equal(statistics[name].hessian, whole[name].hessian) for name in block.layers)
    with torch.no_grad():
        scaled = fold_scales(block, statistics, lambda weight, magnitude, square: best_scale(weight, magnitude.square(), square, 3, 64))
    assert torch.allclose(torch.cat(list(block.outputs(hidden, 4))), before, atol=1e-4)
    seen = block.observe(hidden, 4)
    for name in block.layers:
        assert torch.allclose(seen[name].hessian, scaled[name].hessian, rtol=1e-2, atol=1e-2 * float(seen[name].hessian.abs().max()))


def command(model: Path, out: Path) -> list[str]:
    recipes = [word for name in ("awq-w4g64", "gptq-w4g64", "gptq-w4g64-sequential", "q4_k_m") for word in ("--recipe", name)]
    size = ["--calibration", "python-reference", "--windows", "64", "--length", "64"]
    return ["quantize", "--model", str(model), *recipes, "--out", str(out), *size]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "qlab-cost.json"
    }


def at_work(model: Path, out: Path, log: Path, true: bool = False) -> Started:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as printed:
        return start(command(model, out), printed, printed, environment=environment, true=true)


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tiny: OpenedModel, tmp_path: Path) -> None:
    calm, killed, log = tmp_path / "calm", tmp_path / "killed", tmp_path / "log"
    with log.open("wb") as printed:
        start(["--version"], printed, printed, environment=os.environ | {"OMP_NUM_THREADS": "1"}).wait()  # whose copies these are is there
    started = time.monotonic()
    assert at_work(tiny.path, calm, log).wait() == 0, log.read_text()
    whole = time.monotonic() - started
    chance = random.Random(0)
    for _ in range(4):  # `make bench-quantize` kills ten times
        process = at_work(tiny.path, killed, log)
        time.sleep(whole * chance.uniform(0.1, 0.95))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for manifest in killed.glob("*/qlab.json"):
            assert json.loads(manifest.read_text())  # whatever is there is whole
    assert at_work(tiny.path, killed, log, true=True).wait() == 0, log.read_text()
    assert contents(killed) == contents(calm)


def test_what_cannot_be_done_is_said_and_leaves_nothing(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe 'awq-w9g128'"):
        parse("awq-w9g128")
    for name in ("q4_k_m-", "q4_k_m-settled", "q4_k_m-Plain"):
        with pytest.raises(UserError, match="with -importance or -plain"):
            parse(name)
    assert parse("q4_k_m-importance").name == "q4_k_m-importance"
    with pytest.raises(UserError, match="groups of 24 do not divide"):
        quantize_model(tiny, [parse("awq-w4g24")], calibration, tmp_path)
    assert not list(tmp_path.glob("[!.]*"))
    with pytest.raises(UserError, match="more than the"):
        budget.predict(tiny, [parse("gptq-w4g64")], (8, 64), budget.parse_bytes("10MB"))
    with pytest.raises(UserError, match="is no size"):
        budget.parse_bytes("lots")
    assert budget.parse_bytes("8GiB") == 8 * 2**30
    assert budget.parse_bytes("500 MB") == 500e6


def test_weights_that_are_not_finite_are_named(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    from qlab.models.opening import locate

    folder = shutil.copytree(tiny.path, tmp_path / "broken")
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        quantize_model(locate(str(folder)), [parse("gptq-w4g64")], calibration, tmp_path / "out")


def test_a_dry_run_predicts_and_does_nothing(tiny: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qlab.cli import call

    words = ["quantize", "--model", str(tiny.path), "--recipe", "tuned-w4g64", "--recipe", "nf4", "--out", str(tmp_path / "out")]
    assert call([*words, "--windows", "4", "--length", "32", "--calibration", "python-reference", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "one of 2 blocks" in printed
    assert "to run 4 windows at a time" in printed
    assert not (tmp_path / "out").exists()
    paper = tmp_path / "paper"
    paper.mkdir()
    (paper / "config.json").write_bytes((tiny.path / "config.json").read_bytes())
    words[2] = str(paper)
    assert call([*words, "--windows", "4", "--length", "32", "--dry-run"]) == 0
    without = [re.sub("[0-9.]+ GB of memory", "", line) for line in (printed, capsys.readouterr().out)]
    assert without[0].splitlines()[0].split(":", 1)[1] == without[1].splitlines()[0].split(":", 1)[1]  # as with the weights
    assert call([*words[:-4], "--recipe", "q9_k", "--out", str(tmp_path / "out")]) == 2
