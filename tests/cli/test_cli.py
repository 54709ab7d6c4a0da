"""The command line as its users type it: errors are one message, exit codes tell."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlab import ROOT
from qlab.cli import call, joined
from qlab.models.opening import OpenedModel
from qlab.serve.runtimes.tgi import IMAGE as TGI_IMAGE
from qlab.support.disk.scratch import PREFIX
from tests.conftest import tiny_folder
from tests.starting import start

README = str(ROOT / "README.md")  # a file that is no importance, and stays as it is


def failing(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert call(arguments) == 2
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return " ".join((printed.err + printed.out).split())


def test_papermills_way_of_giving_parameters() -> None:
    assert joined(["run", "-p", "bits", "4", "03"]) == ["run", "-p", "bits=4", "03"]
    assert joined(["-p", "bits=4", "-p", "text", "a b"]) == ["-p", "bits=4", "-p", "text=a b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-p", "bitz", "4"], "no lesson to run has a parameter 'bitz': expected one of"),
        (["run", "-p", "evaluation_windows", "four"], "parameter evaluation_windows is 'four': expected a whole number, such as"),
        (["run", "--model", "/nowhere"], "no model '/nowhere': expected 'embedded', 'smollm2', a folder"),
        (["run", "08"], "no lesson '08': expected one of 01_principles"),
        (["run", "--modle", "x"], "No such option"),
        (["evaluate", "embedded", "--text", "absent.txt"], "no text 'absent.txt'"),
        (["run", "-p", "device", "foo"], "no device 'foo' here"),
        (["evaluate", "embedded", "--device", "cuda:99"], "no device 'cuda:99' here"),
        (["quantize", "--recipe", "gptq-w5g128"], "the GPTQ format holds 2, 3, 4, 8 bits, not 5"),
        (["quantize", "--recipe", "awq-w4g0", "--dry-run"], "groups of 0 weights: expected a group size of 1 or more"),
        (["quantize", "--recipe", "tuned-w4g128-steps0"], "tuning for 0 steps: expected 1 or more, such as 160"),
        (["quantize", "--recipe", "tuned-w4g128-batch0"], "tuning on 0 windows a step: expected 1 or more, such as 4"),
        (
            ["quantize", "--recipe", "rtn-w4g128-batch4"],
            "windows a step are of tuning, such as tuned-w4g128-steps320-batch8: rtn takes none",
        ),
        (["quantize", "--recipe", "gptq-w4g128-steps320"], "steps and windows a step are of tuning, such as tuned-w4g128-steps320-batch8"),
        (["quantize", "--recipe", "awq-w4g100", "--dry-run", "--strict"], "which groups of 100 do not divide"),
        (["quantize", "--recipe", "nf4", "--length", "99999"], "--length is 99999: expected 2 to 1024, the longest context of"),
        (["finetune", "embedded", "--text", "python-reference", "--length", "1025"], "--length is 1025: expected 2 to 1024"),
        (["quantize", "--recipe", "nf4", "--output-type", "Q8_0"], "are for GGUF files: give a recipe of one, such as --recipe q4_k_m"),
        (["quantize", "--recipe", "q4_k_m", "--tensor-type", "Q6_K"], "--tensor-type 'Q6_K': expected PATTERN=TYPE, such as"),
        (["quantize", "--recipe", "q4_k_m", "--tensor-type", "ffn=Q9"], "there is no tensor type 'Q9' here: expected one of Q8_0"),
        (["quantize", "--recipe", "q4_k_m-plain", "--imatrix", README], "goes without importance: leave out --imatrix"),
        (["quantize", "--recipe", "q4_k_m", "--imatrix", README], "README.md is neither a GGUF file nor a whole .dat file"),
        (["imatrix", "never.gguf"], "nothing to write: give a --model to measure, files to --merge, or both"),
        (["imatrix", README, "--model", "embedded"], "README.md is there already: give another name, or remove it"),
        (["fetch", "nothing"], "no model 'nothing' to fetch: expected smollm2"),
        (["release", "--length", "1025"], "--length is 1025: expected 2 to 1024"),
        (["evaluate", "embedded", "--window", "1025"], "--window is 1025: expected 2 to 1024"),
    ],
)
def test_wrong_input_is_one_message_and_nothing_is_written(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = [] if arguments[0] in ("evaluate", "fetch", "imatrix") else ["--out", str(tmp_path / "report")]
    assert message in failing([*arguments, *out], capfd)
    assert not (tmp_path / "report").exists()


def test_a_damaged_model_stops_before_any_lesson(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder(tmp_path / "damaged")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "damaged/model.safetensors is damaged" in failing(["run", "--model", str(folder), "--out", str(tmp_path / "r")], capfd)
    file.unlink()
    assert "has no weights" in failing(["run", "--model", str(folder), "--out", str(tmp_path / "r")], capfd)
    assert not (tmp_path / "r").exists()


def test_evaluate_gives_one_json_object_on_the_last_line(tiny: OpenedModel, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        call(["evaluate", str(tiny.path), "--window", "64", "--tokens", "256", "--reference", str(tiny.path), "--results", "", "--json"])
        == 0
    )
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert {"perplexity", "stderr", "tokens", "window", "kl", "kl_stderr", "top1"} <= set(figures)
    assert figures["kl"] == pytest.approx(0, abs=1e-6)
    assert figures["tokens"] == 4 * 63


def test_bench_and_evaluate_add_to_one_table(
    tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["--prompt-tokens", "8", "--generated-tokens", "4", "--repetitions", "2"]
    assert call(["bench", str(tiny.path), *sizes, "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out.splitlines()[-1])["measured"]
    assert row["runtime"] == "transformers"
    figures = {figure["metric"]: figure for figure in row["figures"]}
    assert figures["generation"]["value"] > 0
    assert figures["generation"]["conditions"]["tg"] == 4
    assert call(["evaluate", str(tiny.path), "--window", "32", "--tokens", "128"]) == 0
    assert call(["results", "--json"]) == 0
    kept = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert {"generation", "perplexity"} <= {figure["metric"] for figure in kept}
    assert len({figure["model"] for figure in kept}) == 1
    assert call(["results", "--metric", "perplexity", "--csv", "all.csv"]) == 0
    assert (tmp_path / "all.csv").read_text().startswith("run,date,model")
    assert call(["results", "--metric", "beauty"]) == 2
    assert "no figures of 'beauty'" in capfd.readouterr().err
    assert call(["bench", str(tiny.path), "--runtime", "tgi"]) == 2


def test_figures_that_cannot_be_kept_are_still_shown(tiny: OpenedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = str(tmp_path / "file" / "results.sqlite")
    assert call(["evaluate", str(tiny.path), "--window", "32", "--tokens", "128", "--results", store]) == 0
    shown = capfd.readouterr()
    assert "perplexity" in shown.out
    assert "the figures were not kept" in shown.err


def test_help_and_version_say_something(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["run", "--help"], ["evaluate", "--help"], ["--version"]):
        assert call(arguments) == 0
    assert "papermill" in capfd.readouterr().out
    assert call(["lessons"]) == 0
    assert "-p evaluation_windows" in capfd.readouterr().out


def test_doctor_finds_this_environment_whole(capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["doctor"]) == 0
    printed, said = capfd.readouterr()
    assert said == ""  # not what libraries say as they are imported
    assert "Warning" not in printed
    assert "not installed" not in printed.replace(
        "not installed; lesson 3", ""
    )  # of the libraries of `make peers`, which one may do without
    assert f"docker pull {TGI_IMAGE}\n" in printed or "runtime TGI       │ OK" in printed  # whole, to be copied
    assert "broken" not in printed
    for name in ("autoawq", "auto-gptq", "bitsandbytes", "xllamacpp", "runtime vLLM"):
        assert name in printed


def test_a_full_disk_is_one_message_and_leaves_nothing_to_trust(tiny: OpenedModel, tmp_path: Path) -> None:
    """Every file is limited to 100 kB, which writing sees as it sees a full disk."""
    limit = (100_000, 100_000)

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    out = tmp_path / "report"
    command = [
        sys.executable,
        "-m",
        "qlab",
        "run",
        "04",
        "--model",
        str(tiny.path),
        "--out",
        str(out),
        "-p",
        "work",
        str(tmp_path / "work"),
    ]
    small = [
        "-p",
        "evaluation_windows",
        "2",
        "-p",
        "evaluation_length",
        "32",
        "-p",
        "calibration_windows",
        "2",
        "-p",
        "calibration_length",
        "32",
    ]
    done = subprocess.run([*command, *small], preexec_fn=prepare, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "File too large" in done.stdout + done.stderr or "cannot write" in done.stdout + done.stderr
    assert not list(out.glob("notebooks/*.json"))
    assert not list((tmp_path / "work").rglob("*.gguf"))


def test_ctrl_c_in_the_middle(tiny: OpenedModel, tmp_path: Path) -> None:
    out, work = tmp_path / "report", tmp_path / "work"
    smaller = ["-p", "evaluation_windows", "2000", "-p", "evaluation_length", "32", "-p", "work", str(work)]
    command = [sys.executable, "-m", "qlab", "run", "01", "--model", str(tiny.path), "--out", str(out), *smaller]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 240
    while not any(work.glob(f"{PREFIX}*/*")):  # the original's predictions, which a cell keeps while it compares
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in " ".join(printed.split())
    assert str(ROOT / "qlab") not in printed  # no traceback of ours; an interrupted kernel sometimes prints one of its own
    assert [path for path in out.rglob("*") if path.is_file()] == []
    assert not any(work.glob(f"{PREFIX}*"))


@pytest.mark.parametrize(("number", "true"), [(signal.SIGTERM, True), (signal.SIGHUP, False)])
def test_a_command_that_is_told_to_end_does_so_in_order(number: int, true: bool, tmp_path: Path) -> None:
    """As by Ctrl-C: what a context manager holds is given back. The command waits for a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent, (tmp_path / "err").open("wb") as err, (tmp_path / "out").open("wb") as out:
        silent.settimeout(120)
        process = start(["load", f"http://127.0.0.1:{silent.getsockname()[1]}", "--model", "m"], out, err, true=true)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(number)
            assert process.wait(60) == 130
    assert "interrupted; nothing is left running" in " ".join((tmp_path / "err").read_text().split())


def test_a_command_that_asks_no_server_starts_without_the_client_of_servers() -> None:
    program = "import sys, qlab.cli.quantize, qlab.serve.runtimes.registry; print('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300).stdout == "False\n"
