"""Formats timed and put under load as jobs of a sweep: which, by what command, and what becomes of their figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlab.support.errors import UserError
from qlab.sweep.expand import expand
from qlab.sweep.jobs import Format, Job, opened
from qlab.sweep.plan import ORIGINAL, Bench, Sweep
from qlab.sweep.results import DONE, FAILED, Result, Store
from qlab.sweep.speed import BENCH, SERVE, bench_of, speeds_table

PLAN = {"models": ["embedded"], "recipes": ["nf4", "q8_0"], "constraints": {"context": 512}}


def jobs_of(out: Path, kind: str, **changes: Any) -> list[Job]:
    sweep = Sweep.model_validate(PLAN | changes)
    return [job for job in expand(sweep, opened(sweep), out) if job.kind == kind]


def test_a_format_is_timed_after_it_is_made_with_the_machine_to_itself(tmp_path: Path) -> None:
    original, nf4, q8_0 = jobs_of(tmp_path, BENCH, bench={"prompt_tokens": 64})
    assert [job.recipe for job in (original, nf4, q8_0)] == ["original", "nf4", "q8_0"]
    assert nf4.words[:2] == ("bench", nf4.place)
    assert nf4.words[nf4.words.index("--prompt-tokens") + 1] == "64"
    assert "--runtime" not in nf4.words
    assert all(job.alone for job in (original, nf4, q8_0))
    (walk,) = jobs_of(tmp_path, "quantize")
    assert (original.needs, nf4.needs) == ((), (walk.key,))
    assert jobs_of(tmp_path / "elsewhere", BENCH, bench={"prompt_tokens": 64})[1].key == nf4.key
    assert jobs_of(tmp_path, BENCH, bench={"prompt_tokens": 65})[1].key != nf4.key
    assert jobs_of(tmp_path, BENCH, bench={"prompt_tokens": 64}, limits={"threads": 2})[1].key != nf4.key
    assert jobs_of(tmp_path, BENCH) == []


def test_a_sweep_s_device_is_in_the_command_and_in_its_key() -> None:
    sweep = Sweep.model_validate(PLAN)
    ((called, subject),) = opened(sweep).items()
    format = Format(called, subject.source, ORIGINAL, "dense", subject.word, subject.word, (subject.source.fingerprint,))
    cpu, cuda = (bench_of(sweep.model_copy(update={"device": device}), Bench(), format) for device in ("cpu", "cuda"))
    assert [job.words[job.words.index("--device") + 1] for job in (cpu, cuda)] == ["cpu", "cuda"]
    assert cpu.key != cuda.key


def test_what_runtimes_run_is_timed_and_a_named_recipe_that_none_runs_is_refused(tmp_path: Path) -> None:
    (job,) = jobs_of(tmp_path, BENCH, bench={"runtimes": ["llamacpp"]})
    assert job.recipe == "q8_0"
    assert job.words[2:4] == ("--runtime", "llamacpp")
    assert [job.recipe for job in jobs_of(tmp_path, BENCH, bench={"recipes": ["original", "q8_0"]})] == ["original", "q8_0"]
    with pytest.raises(UserError, match="nf4 of embedded is bitsandbytes, which llamacpp cannot run"):
        jobs_of(tmp_path, BENCH, bench={"runtimes": ["llamacpp"], "recipes": ["nf4"]})
    with pytest.raises(UserError, match=r"no runtime 'llama\.cpp': expected transformers"):
        jobs_of(tmp_path, BENCH, bench={"runtimes": ["llama.cpp"]})
    with pytest.raises(UserError, match="no runtime 'transformers': expected llamacpp"):
        jobs_of(tmp_path, SERVE, load={"runtime": "transformers"})


def test_a_server_is_put_under_load_with_the_prompts_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "one"}))
    load = {"recipes": ["q8_0"], "concurrency": [1, 8], "prompts": str(file)}
    (job,) = jobs_of(tmp_path, SERVE, load=load)
    assert job.words[job.words.index("--load") + 1] == "1,8"
    assert job.words[job.words.index("--sequences") + 1] == "8"
    assert job.words[job.words.index("--prompts") + 1] == str(file)
    file.write_text(json.dumps({"prompt": "two"}))
    (other,) = jobs_of(tmp_path, SERVE, load=load)
    assert other.key != job.key
    file.unlink()
    with pytest.raises(UserError, match=r"/prompts\.jsonl is not there; expected a file"):
        jobs_of(tmp_path, SERVE, load=load)


def figure(metric: str, value: float | None, error: float | None = None, reason: str = "") -> dict[str, Any]:
    conditions = {"threads": "2", "device": "cpu"} if value else {}
    return {"metric": metric, "value": value, "error": error, "unit": "tok/s", "reason": reason, "conditions": conditions}


def test_speeds_are_rows_a_runtime_and_a_failure_says_why(tmp_path: Path) -> None:
    good, bad = (job for job in jobs_of(tmp_path, BENCH, bench={}) if job.recipe != "original")
    store = Store(tmp_path)
    measured = [
        {"artifact": "nf4", "runtime": "one", "figures": [figure("prompt", 900.0, 9.0), figure("generation", 90.0, 2.0)]},
        {"artifact": "nf4", "runtime": "two", "figures": [figure("generation", None, reason="two is not on this machine")]},
    ]
    store.write(good.key, Result(job=good.name, state=DONE, seconds=1.0, where="host 12", figures={"measured": measured}))
    store.write(bad.key, Result(job=bad.name, state=FAILED, seconds=1.0, error="no memory"))
    first, second, third = speeds_table([good, bad], store).to_dict("records")
    assert (first["runtime"], first["prompt"], first["generation"], first["generation_sd"]) == ("one", 900.0, 90.0, 2.0)
    assert (first["threads"], first["machine"]) == ("2", "host 12")
    assert second["why"] == "two is not on this machine"
    assert (third["format"], third["state"], third["why"]) == ("q8_0", FAILED, "no memory")
