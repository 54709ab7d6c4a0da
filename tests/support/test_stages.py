"""Where time goes: each stage for itself, and nothing where nobody asks."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from qlab import EMBEDDED
from qlab.cli import call
from qlab.support.stages import profiled, stage


def test_a_stage_inside_another_counts_for_itself() -> None:
    with profiled() as stages:
        with stage("outer"):
            time.sleep(0.02)
            with stage("inner"):
                time.sleep(0.05)
        with stage("inner"):
            time.sleep(0.05)
    assert list(stages.seconds) == ["outer", "inner"]
    assert 0.02 <= stages.seconds["outer"] < 0.05
    assert stages.seconds["inner"] >= 0.1
    assert stages.lines()[0].startswith("inner")


def test_a_stage_that_fails_is_left() -> None:
    with profiled() as stages:
        with pytest.raises(ValueError, match="x"), stage("a"):
            raise ValueError("x")
        with stage("b"):
            pass
    assert list(stages.seconds) == ["a", "b"]


def test_nobody_asks() -> None:
    with stage("a"):
        pass
    with profiled() as stages:
        pass
    assert stages.seconds == {}


def test_quantize_prints_where_the_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--windows", "2", "--length", "16", "--model", str(EMBEDDED)]
    assert call(["quantize", *small, "--recipe", "gptq-w4g128", "--out", str(tmp_path), "--profile"]) == 0
    shown = capsys.readouterr().out.split("where the time went:")[1]
    stages = dict(re.findall(r"^(\w[\w ]*?) +(\d+\.\d+) s", shown, re.MULTILINE))
    assert {"read", "forward", "hessian", "factor", "round", "settle", "pack", "error", "write", "assemble"} <= set(stages)
