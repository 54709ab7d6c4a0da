"""A real sweep on the embedded model: jobs in processes, the table, the page, and a second run that does nothing."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from qlab import EMBEDDED
from qlab.artifacts.block_shape import largest_block
from qlab.cli import call
from qlab.models.opening import locate
from qlab.support.errors import UserError
from qlab.sweep.expand import expand
from qlab.sweep.jobs import Job, opened
from qlab.sweep.plan import Sweep
from qlab.sweep.recommend import fitting, recommendation
from qlab.sweep.results import DONE, Store
from qlab.sweep.speed import loads_table, speeds_table
from qlab.sweep.workers.workers import Ended
from qlab.walk import by_block
from tests.sweep.test_drive import Scripted

PLAN = """models: [embedded]
recipes: [nf4, q8_0]
calibration: {windows: 2, length: 64}
evaluation: {window: 64, tokens: 256}
constraints: {memory: 1GB, context: 512}
"""


def test_a_sweep_from_its_file_to_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "plan.yaml", tmp_path / "out"
    file.write_text(PLAN)
    assert call(["sweep", str(file), "--out", str(out), "--dry-run"]) == 0
    assert "4 jobs, 4 to do" in capsys.readouterr().out
    assert not out.exists()
    assert call(["sweep", str(file), "--out", str(out)]) == 0
    said = "".join(capsys.readouterr())
    assert said.count(": done. ") == 4
    assert ": done. 4 done, 0 running, 0 waiting." in said
    assert f"the formats in {out / 'artifacts'}" in " ".join(said.split())
    table = pd.read_csv(out / "table.csv")
    assert list(table["format"]) == ["original", "nf4", "q8_0"]
    assert table["kl"][1] > table["kl"][2] > table["kl"][0]
    shared = ["model", "format", "kl", "bytes"]
    assert pd.read_parquet(out / "table.parquet")[shared].equals(table[shared])
    page = (out / "index.html").read_text()
    assert "q8_0, KL" in page
    assert "http-equiv" not in page  # it is done
    assert "https://" not in page.replace("https://www.w3.org", "")
    for name in ("nf4", "q8_0"):
        (card,) = (out / "artifacts").glob(f"embedded-*/{name}/README.md")
        assert "| licence of the original | apache-2.0, as its card or header states |" in card.read_text()
        assert "| KL divergence to the original (nats/token) | 0.0" in card.read_text()
    times = {path: path.stat().st_mtime_ns for path in (out / "jobs").iterdir()}
    capsys.readouterr()
    assert call(["sweep", str(file), "--out", str(out)]) == 0
    assert "4 jobs, 0 to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (out / "jobs").iterdir()} == times
    speeds_and_loads_are_added(file, out, tmp_path, capsys)
    evaluated = [path for path in times if '"kl"' in path.read_text()]
    assert len(evaluated) == 3
    assert all(path.stat().st_mtime_ns == times[path] for path in evaluated)  # what was measured is not measured again


def speeds_and_loads_are_added(file: Path, out: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same sweep with a bench and a load, for which it looks after the artifacts again; its figures are accepted, then checked."""
    prompts = work / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in ("Return the", "def f(x):", "import")))
    file.write_text(
        f"{PLAN}bench: {{recipes: [q8_0], prompt_tokens: 16, generated_tokens: 8, repetitions: 2}}\n"
        f"load: {{concurrency: [1, 2], tokens: 8, prompts: {prompts}, runtime: llamacpp}}\n"
    )
    assert call(["sweep", str(file), "--out", str(out), "--accept"]) == 0
    assert "6 jobs, 2 to do, 1 to check" in capsys.readouterr().out
    page = (out / "index.html").read_text()
    assert 'id="speeds"' in page
    assert 'id="loads"' in page
    sweep = Sweep.model_validate(yaml.safe_load(file.read_text()))
    jobs, store = expand(sweep, opened(sweep), out), Store(out / "jobs")
    (speed,) = speeds_table(jobs, store).to_dict("records")
    assert (speed["runtime"], speed["state"]) == ("llama.cpp", DONE)
    assert min(speed["prompt"], speed["generation"], speed["memory"]) > 0
    loads = loads_table(jobs, store).to_dict("records")
    assert [row["at_a_time"] for row in loads] == [1, 2]
    assert min(row["output_throughput"] for row in loads) > 0
    assert call(["sweep", str(file), "--out", str(out), "--check"]) == 0
    assert "0 to do" in capsys.readouterr().out
    accepted = work / "plan.accepted.json"
    accepted.write_text(accepted.read_text().replace('"kl":', '"kl_before":'))
    assert call(["sweep", str(file), "--out", str(out), "--check"]) == 1
    assert "not as accepted: embedded" in capsys.readouterr().out
    accepted.unlink()
    assert call(["sweep", str(file), "--out", str(out), "--check"]) == 2


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_folder_that_no_sweep_made_is_refused_before_anything_is_done(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "plan.yaml", tmp_path / "out"
    file.write_text(PLAN)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for place, refused in ((out, f"{out} holds notes.txt"), (EMBEDDED / "sweep", "the folder of the model that is read")):
        assert call(["sweep", str(file), "--out", str(place), *words]) == 2
        said = capsys.readouterr()
        assert said.out == ""  # not even a plan
        assert refused in " ".join(said.err.split())
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert not (EMBEDDED / "sweep").exists()


def test_ctrl_c_is_answered_before_the_jobs_have_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = list[str]()

    class Interrupted(Scripted):
        def ended(self) -> dict[str, Ended]:
            raise KeyboardInterrupt

        def close(self) -> None:
            heard.append(capsys.readouterr().err)
            super().close()

    file, out, workers = tmp_path / "plan.yaml", tmp_path / "out", Interrupted()
    file.write_text(PLAN)
    monkeypatch.setattr("qlab.cli.sweep.workers_for", lambda *_: workers)
    assert call(["sweep", str(file), "--out", str(out)]) == 130
    assert workers.started
    assert "stopping the jobs at work, which takes some seconds" in heard[0]
    assert "interrupted; nothing is left running" in capsys.readouterr().err
    assert not (out / ".lock").exists()
    assert call(["sweep", str(file), "--out", str(out), "--dry-run"]) == 0  # the same command goes on


def jobs_of(plan: dict[str, object], out: Path) -> list[Job]:
    sweep = Sweep.model_validate(plan)
    return expand(sweep, opened(sweep), out)


def test_keys_go_by_what_results_depend_on(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one " * 500)
    plan = {"models": ["embedded"], "recipes": ["nf4"], "evaluation": {"text": [str(text)]}}

    def keys_of(**changes: object) -> list[str]:
        return [job.key for job in jobs_of(plan | changes, tmp_path / "a")]

    keys = keys_of()
    assert [job.key for job in jobs_of(plan, tmp_path / "b")] == keys  # wherever they lie
    text.write_text("two " * 500)
    other = keys_of()
    assert other[0] == keys[0]  # the walk does not read it
    assert other[1] != keys[1]
    with pytest.raises(UserError):
        keys_of(models=["embedded", "/nowhere"])
    more = keys_of(recipes=["nf4", "q8_0"])
    assert more[0] != other[0]  # the walk has one more format to make
    assert more[1:3] == other[1:]  # what was evaluated is not evaluated again
    assert keys_of(models=["embedded", str(EMBEDDED)]) == other  # one model by two names


def test_memory_of_an_evaluation_is_of_what_it_holds_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rule of `qlab evaluate` itself: large models a block at a time, but for one that answers tasks."""

    def memory(*tasks: str) -> float:
        jobs = jobs_of({"models": ["embedded"], "recipes": ["nf4"], "evaluation": {"tasks": list(tasks)}}, tmp_path)
        (found,) = {job.memory for job in jobs if job.kind == "evaluate"}
        return found

    layout = locate("embedded").layout
    small = memory()
    assert memory("heldout-cloze") == small
    assert small > 8 * layout.weights
    monkeypatch.setattr(by_block, "LARGE", 0)
    saved = 4 * (layout.weights - largest_block(layout).weights - prod(layout.shapes[layout.embedding]))
    assert saved > 0.3 * 4 * layout.weights
    assert memory("heldout-cloze") == small - saved
    assert memory() == small - 2 * saved


def row(name: str, kl: float, size: float, state: str = "done") -> dict[str, object]:
    figures = {"kl": kl, "kl_stderr": 0.001, "perplexity": 10 * (1 + kl), "stderr": 0.1, "bytes": size}
    return {"model": "m", "format": name, "state": state, "why": "", **figures}


def test_the_recommendation_fits_and_passes() -> None:
    table = pd.DataFrame(
        [row("original", 0.0, 100e6), row("a", 0.01, 60e6), row("b", 0.05, 40e6), row("c", 0.3, 20e6), row("d", 0, 1, "x")]
    )

    def said(**changes: object) -> str:
        sweep = Sweep.model_validate({"models": ["m"], "recipes": ["a"]} | changes)
        (sentence,) = recommendation(fitting(table, sweep, {"m": 10e6}), sweep)
        return sentence

    assert "a, KL 0.0100 ± 0.0010, 70.00 MB with its cache. Next: b, 20.00 MB less, 0.0400 nats a token farther" in said()
    assert ": b, KL" in said(constraints={"memory": "60MB"})  # 54 usable, of which a needs 70
    assert said(constraints={"memory": "30MB"}) == "m: no format fits 1 x 4,096 tokens in 30MB and passes the gates."
    assert "Next" not in said(gates={"kl": 0.02})
    assert "no format" in said(gates={"perplexity": 1.001})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_here_is_told_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(f"{PLAN}device: cuda\n")
    assert call(["sweep", str(file), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "no device 'cuda' here" in capsys.readouterr().err
