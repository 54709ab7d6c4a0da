"""The page of a sweep: not written more often than somebody can read it, and names are text in it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from qlab.show.site import sweep_page
from qlab.show.site.sweep_page import EVERY, TABLES, LivePage, write_page
from qlab.sweep.drive import Progress
from qlab.sweep.plan import Sweep
from qlab.sweep.recommend import fitting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(sweep_page.time, "monotonic", lambda: now[0])
    return now


def test_a_page_is_written_every_few_seconds_and_never_forgotten(clock: list[float]) -> None:
    written: list[float] = []
    live, first, second = LivePage(lambda progress: written.append(clock[0])), Progress(), Progress()
    for _ in range(40):  # something changes once, at the beginning, and then nothing for long
        live.update(first if not written else second)
        clock[0] += EVERY / 10
    assert written == [100.0, 100.0 + EVERY]


def test_a_large_page_is_written_less_often(clock: list[float]) -> None:
    written: list[float] = []

    def slow(progress: Progress) -> None:
        written.append(clock[0])
        clock[0] += 3.0

    live = LivePage(slow)
    while clock[0] < 200:
        live.update(Progress())
        clock[0] += 0.5
    assert len(written) == 4  # 3 s each, 10 % of the time


def test_names_and_complaints_are_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    rows = [{"model": hostile, "format": "nf4", "state": "failed", "why": hostile}]
    table = fitting(pd.DataFrame(rows), Sweep.model_validate({"models": ["m"], "recipes": ["nf4"]}), {hostile: 1.0})
    lesson = {"lesson": "03_gptq", "model": hostile, "state": "done", "why": "", "seconds": 90.0, "page": 'lessons/a b"c#/03_gptq.html'}
    figures = {"measured": hostile, "kl": 0.01, "kl_stderr": 0.001, "perplexity": 20.0, "stderr": 1.0, "top1": 0.9}
    speed = {"model": hostile, "format": "nf4", "runtime": hostile, "state": "done", "why": "", "machine": hostile}
    speed |= {"prompt": 900.4, "prompt_sd": 3.0, "generation": 50.26, "generation_sd": 0.44, "threads": "2"}
    load = {"model": hostile, "format": "nf4", "state": "failed", "why": hostile, "machine": ""}
    frames = [table, pd.DataFrame([lesson | figures]), pd.DataFrame([speed]), pd.DataFrame([load])]
    page = write_page(tmp_path, dict(zip(TABLES, frames)), [hostile], "1 failed.", True).read_text()
    assert hostile not in page
    assert page.count("&lt;script&gt;") == 10
    assert "50.3 ± 0.4" in page
    assert '<a href="lessons/a%20b%22c%23/03_gptq.html">03_gptq</a>' in page
    assert "0.0100 ± 0.0010" in page
    assert f'content="{EVERY:.0f}"' in page


def test_quality_is_drawn_against_speed_where_speed_was_measured(tmp_path: Path) -> None:
    rows = [
        {"model": "m", "format": name, "state": "done", "why": "", "kl": kl, "kl_stderr": 1e-3} for name, kl in (("a", 0.1), ("b", 0.02))
    ]
    table = fitting(pd.DataFrame(rows).assign(bytes=1e6), Sweep.model_validate({"models": ["m"], "recipes": ["nf4"]}), {"m": 1.0})
    speeds = pd.DataFrame([
        {"model": "m", "format": name, "runtime": "llama.cpp", "state": "done", "why": "", "generation": rate, "generation_sd": 1.0}
        for name, rate in (("a", 200.0), ("b", 100.0))
    ])  # fmt: skip
    frames = [table, pd.DataFrame(), speeds, pd.DataFrame()]
    page = write_page(tmp_path, dict(zip(TABLES, frames)), [], "2 done.", False).read_text()
    assert "a, llama.cpp is the fastest, at 5.00 ms a token" in page
    frames[2] = speeds.head(1)
    assert "is the fastest" not in write_page(tmp_path, dict(zip(TABLES, frames)), [], "2 done.", False).read_text()
