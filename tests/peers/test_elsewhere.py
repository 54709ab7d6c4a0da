"""AutoRound and llm-compressor: what is said and started where their environment is missing, and what they write where it is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from qlab import ROOT
from qlab.artifacts.artifact import Artifact, inputs_of, make_artifact
from qlab.cli import call
from qlab.doctor.advisories import environments
from qlab.doctor.examine import check_elsewhere, fault_found
from qlab.evaluate.quality import measure_quality
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.peers import at_work, elsewhere
from qlab.peers.elsewhere import AUTO_ROUND, LLM_COMPRESSOR
from qlab.peers.recipes import AutoRound, LLMCompressor
from qlab.recipes import Recipe
from qlab.support.errors import UserError
from qlab.workbook.lesson import able
from tests.walk.families import FAMILIES, make

RECIPES = [AutoRound(iterations=4), LLMCompressor(), LLMCompressor(bits=8, smooth=True)]
STANDING_IN = """
import json, sys, pathlib
assert sys.flags.isolated
isolated, script, work, parent = sys.argv[1:]
assert script.endswith("at_work.py") and parent.isdecimal()
work = pathlib.Path(work)
request = json.loads((work / "request.json").read_text())
if request.get("iterations") == 0:
    print("loading: 100 %")  # written when the process ends, behind what it says there
    sys.exit("no steps")
(pathlib.Path(request["out"]) / "seen.json").write_text(json.dumps(request))
(work / "cost.json").write_text('{"seconds": 2.5, "peak_bytes": 7}')
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in the place of .venv-peers: packages' names and versions, and a Python that stands in for the libraries."""
    folder = tmp_path / ".venv-peers"
    monkeypatch.setattr(elsewhere, "FOLDER", folder)
    packages = folder / "lib" / "python3.11" / "site-packages"
    for name, version in (("auto_round", "0.15.1"), ("llmcompressor", "0.14.0.1"), ("transformers", "5.17.0"), ("torch", "2.13.0")):
        (packages / f"{name}-{version}.dist-info").mkdir(parents=True)
        (packages / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    program = folder / "bin" / "python"
    program.parent.mkdir()
    (folder / "standing_in.py").write_text(STANDING_IN)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$1" {folder}/standing_in.py "$@"\n')
    program.chmod(0o755)
    (folder / ".ready").touch()
    return folder


@pytest.mark.parametrize(("recipe", "library"), [(RECIPES[0], AUTO_ROUND), (RECIPES[1], LLM_COMPRESSOR)])
def test_where_it_is_missing_it_is_named_with_the_command(
    recipe: Recipe, library: str, tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(elsewhere, "FOLDER", tmp_path / "nowhere")
    assert able({"it": recipe}, lambda one: one.check(tiny)) == {}
    printed = capsys.readouterr().out
    assert printed.startswith(f"Left out: it. {library} is not installed")
    assert "'make peers'" in printed
    with pytest.raises(UserError, match="make peers"):
        recipe.quantize(tiny, torch.zeros(1, 2, dtype=torch.long), tmp_path, "cpu")
    assert list(tmp_path.iterdir()) == []
    line = check_elsewhere(library)
    assert (line.subject, line.state, line.mend, line.optional) == (library, "missing", "make peers", True)


def test_doctor_tells_a_whole_environment_from_a_half_one(environment: Path) -> None:
    line = check_elsewhere(AUTO_ROUND)
    assert (line.state, line.mend) == ("OK", "")
    assert line.detail == "0.15.1 in .venv-peers, with compressed-tensors absent, torch 2.13.0, transformers 5.17.0"
    (environment / ".ready").unlink()
    assert check_elsewhere(LLM_COMPRESSOR).state == "broken"
    assert check_elsewhere(LLM_COMPRESSOR).mend == "make peers"


def test_known_faults_of_its_packages_are_mended_by_its_own_command() -> None:
    from qlab.doctor.advisories import FAULTS

    assert fault_found(".venv-peers", {"torch": "2.5"}, FAULTS[0]).mend == "rm -rf .venv-peers && make peers"
    assert (".venv-peers" in environments()) == elsewhere.FOLDER.exists()


def test_the_library_is_given_the_model_and_the_very_windows(
    environment: Path, tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    found = AutoRound(group_size=64).quantize(tiny, calibration, out, "cpu")
    assert found == {"cost": {"seconds": 2.5, "peak_bytes": 7}}
    seen: dict[str, Any] = json.loads((out / "seen.json").read_text())
    assert torch.equal(torch.tensor(seen.pop("windows")), calibration)
    assert seen == {
        "library": AUTO_ROUND, "model": str(tiny.path), "out": str(out), "device": "cpu",
        "bits": 4, "group_size": 64, "symmetric": True, "iterations": 200,
    }  # fmt: skip
    assert (out / "tokenizer.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".venv-peers", "out"]


def test_a_library_that_fails_is_a_failure(environment: Path, tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="AutoRound ended with exit code 1: no steps"):
        AutoRound(iterations=0).quantize(tiny, calibration, tmp_path, "cpu")


def test_what_a_library_says_is_passed_on_and_nobody_waits_for_what_it_left_running(capfd: pytest.CaptureFixture[str]) -> None:
    told = """
import subprocess, sys
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
sys.stderr.write(f"1%\\r2%\\nleft: {left.pid}\\n\\n")
"""
    with subprocess.Popen([sys.executable, "-c", told], stderr=subprocess.PIPE) as program:
        last = elsewhere.passed_on(program)
    psutil.Process(int(last.removeprefix("left: "))).kill()  # it has the same pipe, and ran on
    assert capfd.readouterr().err == f"1%\r2%\n{last}\n\n"


def test_all_that_a_library_said_before_its_end_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    told = "import os, sys; sys.stderr.write('x' * 60_000 + '\\nthe reason'); sys.stderr.close(); os.close(2)"
    with subprocess.Popen([sys.executable, "-c", told], stderr=subprocess.PIPE) as program:
        program.wait()  # less than a pipe holds
        assert elsewhere.passed_on(program) == "the reason"
    assert capfd.readouterr().err == "x" * 60_000 + "\nthe reason"


def test_whoever_stops_waiting_ends_the_library(
    environment: Path, tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def stopped(program: subprocess.Popen[bytes]) -> str:
        started.append(program)
        raise KeyboardInterrupt

    monkeypatch.setattr(elsewhere, "passed_on", stopped)
    (environment / "standing_in.py").write_text("import time; time.sleep(600)")
    with pytest.raises(KeyboardInterrupt):
        AutoRound().quantize(tiny, calibration, tmp_path, "cpu")
    assert started[0].returncode == -signal.SIGKILL


def test_programs_beside_the_model_are_no_part_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "request.json").write_text(json.dumps({"library": "AutoRound", "out": str(out)}))

    def quantized(request: dict[str, Any]) -> None:
        for name in ("train.py", "model.safetensors"):
            (Path(request["out"]) / name).write_text("")

    class Left(Exception):
        """In place of the process's end."""

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(at_work, "LIBRARIES", {"AutoRound": ("json", quantized)})
    monkeypatch.setattr(sys, "argv", ["at_work.py", str(tmp_path), str(os.getppid())])
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Left):
        at_work.main()
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]


def test_an_artifact_depends_on_the_versions_there(environment: Path, tiny: OpenedModel, calibration: torch.Tensor) -> None:
    found = inputs_of(LLMCompressor(), tiny, calibration, "cpu")["versions"]
    assert (found["llmcompressor"], found["transformers"], found["compressed-tensors"]) == ("0.14.0.1", "5.17.0", "absent")
    assert "auto-round" not in found
    assert found["qlab"] != "absent"


def test_a_mixture_of_experts_is_refused(environment: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is given dense language models"):
        AutoRound().check(make(tmp_path / "model", FAMILIES["qwen3_moe"]))


def test_names_tell_recipes_apart() -> None:
    recipes = [*RECIPES, AutoRound(), AutoRound(symmetric=False), LLMCompressor(group_size=64)]
    assert [recipe.name for recipe in recipes] == [
        "autoround-w4g128-steps4", "llmcompressor-gptq-w4g128", "llmcompressor-smooth-gptq-w8a8",
        "autoround-w4g128", "autoround-w4g128-asym", "llmcompressor-gptq-w4g64",
    ]  # fmt: skip
    with pytest.raises(UserError, match="bits=8"):
        LLMCompressor(smooth=True)


def test_every_window_and_every_token_of_it_counts(calibration: torch.Tensor) -> None:
    parts = at_work.batches(calibration[:3].tolist() * 5)
    assert [len(part["input_ids"]) for part in parts] == [8, 7]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), calibration[:3].repeat(5, 1))
    assert all(bool(part["attention_mask"].all()) and part["attention_mask"].shape == part["input_ids"].shape for part in parts)


def test_a_library_s_process_ends_with_the_one_that_waits_for_it() -> None:
    """A parent starts it, with its own standard output, and goes: the output is at its end only when both have gone."""
    child = "import sys; from qlab.peers import at_work; at_work.end_with(int(sys.argv[1]))"
    parent = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE, timeout=300, check=True)


def test_the_makefile_pins_what_doctor_looks_for() -> None:
    rule = (ROOT / "Makefile").read_text().partition("$(PEERS)/.ready:\n")[2].partition("@touch")[0]
    assert all(f"{name}==" in rule for name in (*elsewhere.PACKAGES.values(), *elsewhere.BESIDE))
    printed = subprocess.run(["make", "--dry-run", "--always-make", "peers"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"touch {elsewhere.FOLDER.name}/.ready" in printed
    assert elsewhere.INSTALL == "make peers"


needs_them = pytest.mark.skipif(
    not elsewhere.present(), reason="needs AutoRound and llm-compressor, in an environment of their own (make peers)"
)


@pytest.fixture(scope="module")
def artifacts(tiny: OpenedModel, calibration: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    work = str(tmp_path_factory.mktemp("work"))
    return {recipe.name: make_artifact(recipe, tiny, calibration, work) for recipe in RECIPES}


@needs_them
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_what_they_write_is_read_near_the_original_and_not_it(recipe: Recipe, artifacts: dict[str, Artifact], tiny: OpenedModel) -> None:
    made = artifacts[recipe.name]
    windows = torch.randint(1, 4096, (2, 64), generator=torch.Generator().manual_seed(3))
    quality = measure_quality(load(made.source), windows, load(tiny))
    assert 1e-8 < (quality.kl or 0) < 0.01
    assert len(made.source.checkpoint.quantized_names()) == 14
    assert made.seconds > 0
    assert made.peak_bytes > 200e6
    assert made.manifest["inputs"]["versions"]["transformers"] == elsewhere.versions(AUTO_ROUND)["transformers"]


@needs_them
@pytest.mark.parametrize("recipe", RECIPES[1:], ids=lambda recipe: recipe.name)
def test_llm_compressors_checkpoint_is_evaluated_planned_and_prepared_to_be_served_unchanged(
    recipe: Recipe, artifacts: dict[str, Artifact], tiny: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(artifacts[recipe.name].path, folder)
    for note in folder.glob("qlab*.json"):  # nothing of qlab's is left beside what the library wrote
        note.unlink()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    words = ["--window", "64", "--tokens", "256", "--reference", str(tiny.path), "--no-floor", "--results", "", "--json"]
    assert call(["evaluate", str(folder), *words]) == 0
    assert 1e-8 < json.loads(capsys.readouterr().out.splitlines()[-1])["kl"] < 0.01
    assert call(["plan", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    size = sum(len(content) for name, content in before.items() if name.endswith(".safetensors"))
    assert told["format"] == "as stored"
    assert 1e9 * (told["linear"] + told["embedding"]) == pytest.approx(size, rel=0.01)
    assert call(["serve", str(folder), "--runtime", "vllm", "--write", str(tmp_path / "files")]) == 0
    assert any("vllm" in file.read_text() for file in (tmp_path / "files").iterdir())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
