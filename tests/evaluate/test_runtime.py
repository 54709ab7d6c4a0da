"""Speed and memory, in the runtimes that are here: one protocol for all, and the runtime's own clock beside ours."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qlab.artifact import make_artifact
from qlab.deploy.footprint import Footprint, computing, packed_by_bitsandbytes
from qlab.errors import UserError
from qlab.evaluate import rounds
from qlab.evaluate.bandwidth import read_bandwidth
from qlab.evaluate.engines import RUNNERS, runners_of
from qlab.evaluate.memory import disk_bytes, peak_during
from qlab.evaluate.rounds import Protocol, measure_in_turns
from qlab.evaluate.runtime import measure_runtime, pooled
from qlab.evaluate.speed import measure_speed, prompt_ids, rate
from qlab.model import Source
from qlab.peers.recipes import BitsAndBytes
from qlab.process import run_isolated
from qlab.recipes import Recipe, parse

QUICK = Protocol(16, 4, 1, 2)


class Sleeper:
    """An engine that takes a known time, and reports half of it."""

    label = "sleeper"
    conditions = {"device": "none", "dtype": "none", "kernel": "none", "threads": "0"}  # noqa: RUF012

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def read(self, ids: Sequence[int]) -> float:
        self.seen.append(tuple(ids))
        time.sleep(0.05)
        return 0.025

    def generate(self, first: int, count: int) -> None:
        time.sleep(0.01 * count)

    held = int


def test_rate_leaves_out_the_warm_up() -> None:
    calls: list[int] = []
    mean, spread, reported = rate(lambda: calls.append(1), 10, 3)
    assert len(calls) == 4
    assert mean > 0
    assert spread >= 0
    assert reported is None


def test_speeds_are_tokens_over_seconds_by_our_clock_and_the_runtimes() -> None:
    engine = Sleeper()
    speed = measure_speed(engine, 1000, 100, 5, 2)
    assert speed.prompt == pytest.approx(100 / 0.05, rel=0.2)
    assert speed.prompt_reported == pytest.approx(100 / 0.025)
    assert speed.generation == pytest.approx(100, rel=0.2)
    assert speed.generation_reported is None
    assert set(engine.seen) == {tuple(prompt_ids(1000, 100))}  # everyone reads the same prompt


@pytest.mark.parametrize(
    ("recipe", "runner"), [("", "transformers"), ("q8_0", "llamacpp"), ("bitsandbytes", "bitsandbytes"), ("rtn-w4g128", "autoawq")]
)
def test_every_runtime_reports(recipe: str, runner: str, tiny: Source, calibration: torch.Tensor, tmp_path: Path) -> None:
    made: Recipe | None = BitsAndBytes() if recipe == "bitsandbytes" else parse(recipe) if recipe else None
    folder = make_artifact(made, tiny, calibration, str(tmp_path)).path if made else tiny.path
    figures = run_isolated(measure_runtime, folder, runner, 16, 4, 1).value
    assert figures.speed.runtime == RUNNERS[runner].label
    assert figures.speed.prompt > 0
    assert figures.speed.generation > 0
    assert (figures.speed.generation_reported is not None) == (runner == "llamacpp")
    assert all(figures.speed.conditions[name] for name in ("device", "dtype", "kernel", "threads"))
    assert 0.5 * disk_bytes(folder) < figures.memory.prompting < 500e6  # AutoAWQ maps its file, and reads it when it is wanted
    assert 0 < figures.ceiling < math.inf
    assert figures.memory.expected.weights > 0.9 * disk_bytes(folder)


def test_the_peak_has_the_unpacked_layer_and_on_a_gpu_cublas() -> None:
    model = Footprint(100e6, 90e6, 10, 1000, largest=10_000_000)
    assert computing(model, 5.0, (9, 0)).peak - model.total == pytest.approx((32 << 20) + 50e6)
    assert computing(model, 0.0, (8, 9)).peak - model.total == 8 << 20
    assert computing(model, 12.0).peak - model.total == pytest.approx(120e6)
    assert model.peak is None  # nothing is predicted that nobody measured


@pytest.mark.parametrize("able", [True, False])
def test_bitsandbytes_holds_the_codes_twice_where_the_processor_multiplies_in_bf16(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: able)
    one, two = (packed_by_bitsandbytes(Footprint(100e6, 90e6, 10, 1000, largest=10_000_000, codes=codes)) for codes in (0, 50_000_000))
    if not able:
        assert two.peak is None
    else:
        assert 50e6 <= two.peak - one.peak <= 55e6
        assert one.peak > one.total + 4 * 10_000_000


def test_what_starts_slowly_starts_once_and_is_timed_as_often(tiny: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def measured(
        function: object, folder: Path, runtime: str, prompt: int, generated: int, repetitions: int, *_: object, limit: float
    ) -> object:
        asked.append((repetitions, limit))
        raise UserError("enough")

    monkeypatch.setattr(rounds, "run_isolated", measured)
    measure_in_turns({"tiny": tiny.path}, ["transformers"], Protocol(16, 4, 2, 3, limit=10))
    monkeypatch.setitem(rounds.RUNNERS, "transformers", replace(RUNNERS["transformers"], starts_slowly=True))
    measure_in_turns({"tiny": tiny.path}, ["transformers"], Protocol(16, 4, 2, 3, limit=10))
    assert asked == [(2, 10), (6, 30)]


def test_rounds_are_pooled(tiny: Source) -> None:
    found = run_isolated(measure_runtime, tiny.path, "transformers", 16, 4, 1).value
    assert pooled([found]) == found


def test_a_crash_and_a_time_out_are_rows_and_the_rest_goes_on(tiny: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"good": tiny.path, "crashes": tiny.path, "hangs": tiny.path}
    really = rounds.one_run
    names = iter(["good", "crashes", "hangs", "good"])  # a row with a problem has no second round

    def one_run(folder: Path, runtime: str, protocol: Protocol) -> object:
        name = next(names)
        if name == "good":
            return really(folder, runtime, protocol)
        return run_isolated(abort, limit=120) if name == "crashes" else run_isolated(sleep_long, limit=3)

    monkeypatch.setattr(rounds, "one_run", one_run)
    good, crashed, hung = measure_in_turns(folders, ["transformers"], QUICK)
    assert good.figures
    assert not good.problem
    assert crashed.figures is None
    assert "exit code" in crashed.problem
    assert "\n" not in crashed.problem
    assert hung.figures is None
    assert "not done within 3 s" in hung.problem


def abort() -> None:
    import os

    os.abort()


def sleep_long() -> None:
    time.sleep(600)


def test_an_absent_runtime_is_a_row_with_the_command_that_installs_it(tiny: Source, calibration: torch.Tensor, tmp_path: Path) -> None:
    folder = make_artifact(parse("rtn-w4g128"), tiny, calibration, str(tmp_path)).path
    if RUNNERS["gptqmodel"].present():
        pytest.skip("GPTQModel is here")
    (row,) = measure_in_turns({"awq": folder}, ["gptqmodel"], QUICK)
    assert row.figures is None
    assert "pip install" in row.problem


def test_wrong_wishes_are_refused_before_any_work(tiny: Source) -> None:
    with pytest.raises(UserError, match="no runtime 'tgi'"):
        runners_of(tiny.path, ["tgi"])
    with pytest.raises(UserError, match=r"llamacpp: none runs tiny, which is dense; transformers would"):
        runners_of(tiny.path, ["llamacpp"])
    with pytest.raises(UserError, match="no spread"):
        measure_in_turns({"tiny": tiny.path}, [], Protocol(16, 4, 1, 1))


def test_the_peak_is_seen_though_it_is_gone_at_the_end() -> None:
    held = 100

    def work() -> None:
        nonlocal held
        held = 900
        time.sleep(0.05)
        held = 200

    before = threading.active_count()
    assert peak_during(work, lambda: held) == 900
    assert threading.active_count() == before


def test_bandwidth_is_that_of_this_machine() -> None:
    assert 1e9 < read_bandwidth(64 << 20) < 1e13
