"""Where time goes: each stage for itself, and nothing where nobody asks."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlab import EMBEDDED
from qlab.cli import call
from qlab.support.stages import profiled, stage


def test_a_stage_inside_another_counts_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # outer from 0 to 2 and from 5 to 6, inner from 2 to 5 and from 7 to 10
    clock = iter([0.0, 2.0, 5.0, 6.0, 7.0, 10.0])
    monkeypatch.setattr("qlab.support.stages.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with profiled("cpu") as stages:
        with stage("outer"), stage("inner"):
            pass
        with stage("inner"):
            pass
    assert list(stages.seconds) == ["outer", "inner"]
    assert stages.seconds == {"outer": 3.0, "inner": 6.0}
    assert stages.lines()[0].startswith("inner")


def test_the_gpu_that_is_asked_for_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = list[object]()
    monkeypatch.setattr("torch.cuda.synchronize", waited.append)
    with profiled("cuda:1"), stage("a"):
        pass
    assert list(map(str, waited)) == ["cuda:1"] * 2
    with profiled("cpu"), stage("a"):
        pass
    assert len(waited) == 2


def test_a_stage_that_fails_is_left() -> None:
    with profiled("cpu") as stages:
        with pytest.raises(ValueError, match="x"), stage("a"):
            raise ValueError("x")
        with stage("b"):
            pass
    assert list(stages.seconds) == ["a", "b"]


def test_nobody_asks() -> None:
    with stage("a"):
        pass
    with profiled("cpu") as stages:
        pass
    assert stages.seconds == {}


def test_quantize_prints_where_the_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--windows", "2", "--length", "16", "--model", str(EMBEDDED)]
    assert call(["quantize", *small, "--recipe", "gptq-w4g128", "--out", str(tmp_path), "--profile"]) == 0
    shown = capsys.readouterr().out.split("where the time went:")[1]
    stages = dict(re.findall(r"^(\w[\w ]*?) +(\d+\.\d+) s", shown, re.MULTILINE))
    assert {"read", "forward", "hessian", "factor", "round", "settle", "pack", "error", "write", "assemble"} <= set(stages)
