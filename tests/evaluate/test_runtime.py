"""Speed and memory, in the runtimes that are here: one protocol for all, and the runtime's own clock beside ours."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlab.artifacts.artifact import make_artifact
from qlab.evaluate import bandwidth, rounds
from qlab.evaluate import speed as speed_module
from qlab.evaluate.bandwidth import read_bandwidth, read_bandwidths
from qlab.evaluate.engines import RUNNERS, runners_of
from qlab.evaluate.rounds import SEEN, Protocol, check_device, measure_in_turns, starting_on
from qlab.evaluate.runtime import Memory, Reading, measuring, pooled
from qlab.evaluate.speed import Speed, measure_speed, prompt_ids, rate
from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel
from qlab.peers.recipes import BitsAndBytes
from qlab.plan.footprint import Footprint, computing, packed_by_bitsandbytes
from qlab.recipes import Recipe, parse
from qlab.support.errors import UserError
from qlab.support.memory import disk_bytes, peak_during
from qlab.support.processes.process import Isolated, Outcome, Overdue, run_isolated
from tests.living import isolated

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


@pytest.mark.parametrize(
    ("seconds", "asked", "timed"), [(0.001, 3, 100), (0.001, 120, 120), (0.125, 1, 3), (0.125, 5, 5), (0.4, 1, 1), (2, 2, 2)]
)
def test_a_rate_rests_on_enough_timings(seconds: float, asked: int, timed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, 0

    def work() -> None:
        nonlocal now, calls
        now += seconds
        calls += 1

    monkeypatch.setattr(speed_module, "time", SimpleNamespace(perf_counter=lambda: now))
    mean, spread, reported = rate(work, 10, asked)
    assert calls == timed
    assert mean == pytest.approx(10 / seconds)
    assert spread == pytest.approx(0, abs=1e-6 * mean)
    assert reported is None


def test_speeds_are_tokens_over_seconds_by_our_clock_and_the_runtimes() -> None:
    engine = Sleeper()
    speed = measure_speed(engine, 1000, 100, 5, 2)
    assert speed.prompt == pytest.approx(100 / 0.05, rel=0.2)
    assert speed.prompt_reported == pytest.approx(100 / 0.025)
    assert speed.generation == pytest.approx(100, rel=0.2)
    assert speed.generation_reported is None
    assert set(engine.seen) == {tuple(prompt_ids(1000, 100))}  # everyone reads the same prompt


class Lazy(Sleeper):
    """An engine that takes long the first time that it does either, as one does that loads what it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def read(self, ids: Sequence[int]) -> float:
        if not self.seen:
            time.sleep(0.5)
        return super().read(ids)

    def generate(self, first: int, count: int) -> None:
        if not self.counts:
            time.sleep(0.5)
        self.counts.append(count)
        super().generate(first, count)


def test_the_warm_up_is_the_prompt_and_one_token_and_is_not_timed() -> None:
    engine = Lazy()
    for warm, generated in ((False, [1, 40]), (True, [1, 40, 40])):
        speed = measure_speed(engine, 1000, 100, 40, 1, warm)
        assert engine.counts == generated
        assert speed.generation == pytest.approx(100, rel=0.3)
        assert speed.prompt == pytest.approx(100 / 0.05, rel=0.3)


@pytest.mark.parametrize(
    ("recipe", "runner"),
    [
        ("", "transformers"),
        ("q8_0", "llamacpp"),
        ("bitsandbytes", "bitsandbytes"),
        ("rtn-w4g128", "autoawq"),
        ("rtn-w4g128-sym", "autogptq"),
    ],
)
def test_every_runtime_reports(recipe: str, runner: str, tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    made: Recipe | None = BitsAndBytes() if recipe == "bitsandbytes" else parse(recipe) if recipe else None
    folder = make_artifact(made, tiny, calibration, str(tmp_path)).path if made else tiny.path
    with Isolated(measuring, folder, runner, 16, 4, 1) as process:
        figures = pooled([process.next(120)], 1e9)
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


@cache
def sleepers_speed() -> Speed:
    """Measured once: those that pretend tell no other."""
    return measure_speed(Sleeper(), 1000, 1, 1, 1)


class Pretender:
    """In a process's stead: what was started, for how many repetitions, beside what, asked within what limits, and closed."""

    started: list[tuple[str, int]] = []  # noqa: RUF012
    beside: list[set[str]] = []  # noqa: RUF012
    limits: list[float] = []  # noqa: RUF012
    living: set[str] = set()  # noqa: RUF012
    failures: list[BaseException] = []  # noqa: RUF012
    alive = True
    free = 1e15  # bytes of its GPU

    def __init__(self, generator: object, folder: Path, runtime: str, prompt: int, generated: int, repetitions: int, *_: object, name: str):
        self.name = f"{folder.name}/{name}"
        self.started.append((self.name, repetitions))
        self.beside.append(set(self.living))
        self.living.add(self.name)

    def next(self, limit: float) -> Reading:
        self.limits.append(limit)
        if self.failures and self.name.startswith("b"):
            raise self.failures.pop()
        return Reading(sleepers_speed(), Memory(int(1e9), 0, 0, Footprint(1, 1, 1, 1)), self.free - 1e9 * len(self.living))

    def close(self) -> None:
        self.living.remove(self.name)


@pytest.fixture
def pretender(monkeypatch: pytest.MonkeyPatch) -> type[Pretender]:
    monkeypatch.setattr(rounds, "Isolated", Pretender)
    monkeypatch.setattr(rounds, "pooled", lambda readings, bandwidth: len(readings))
    monkeypatch.setattr(rounds, "run_isolated", lambda function, wanted: Outcome([1e9] * len(wanted), 0, 0))
    monkeypatch.setattr(rounds, "free_bytes", lambda: 1e15)
    monkeypatch.setattr(Pretender, "free", 1e15)
    for record in (Pretender.started, Pretender.beside, Pretender.limits, Pretender.living, Pretender.failures):
        record.clear()
    return Pretender


def copies(tiny: OpenedModel, folder: Path, *names: str) -> dict[str, Path]:
    """The same model in several folders."""
    return {name: Path(shutil.copytree(tiny.path, folder / name)) for name in names}


def test_what_starts_slowly_comes_first_alone_and_is_timed_as_often(
    tiny: OpenedModel, tmp_path: Path, pretender: type[Pretender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rounds.RUNNERS, "gptqmodel", replace(RUNNERS["transformers"], starts_slowly=True, label="slow"))
    measured = measure_in_turns(copies(tiny, tmp_path, "a", "b"), ["transformers", "gptqmodel"], Protocol(16, 4, 2, 3, limit=10))
    assert [repetitions for _, repetitions in pretender.started] == [6, 6, 2, 2]
    assert pretender.limits == [30, 30, *[10] * 6]
    assert [one.figures for one in measured] == [3, 1, 3, 1]
    assert not pretender.living
    assert [name for name, _ in pretender.started] == ["a/slow", "b/slow", "a/transformers", "b/transformers"]
    assert pretender.beside == [set(), set(), set(), {"a/transformers"}]


@pytest.mark.parametrize(("room", "started"), [(3, "abc"), (2, "abcb"), (1, "abcabc")])
def test_processes_stay_from_round_to_round_while_memory_has_room(
    room: int, started: str, tiny: OpenedModel, tmp_path: Path, pretender: type[Pretender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "free_bytes", lambda: 1e15 if len(pretender.living) < room else 1e9)
    measured = measure_in_turns(copies(tiny, tmp_path, *"abc"), ["transformers"], QUICK)
    assert "".join(name[0] for name, _ in pretender.started) == started
    assert [one.figures for one in measured] == [2, 2, 2]
    assert not pretender.living


def test_processes_stay_while_the_gpu_has_room(
    tiny: OpenedModel, tmp_path: Path, pretender: type[Pretender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pretender, "free", 4.5e9)  # of which each holds one: a third finds 2.5 free and needs a little over 2
    measured = measure_in_turns(copies(tiny, tmp_path, *"abcd"), ["transformers"], QUICK)
    assert [len(others) for others in pretender.beside[:4]] == [0, 1, 2, 2]
    assert [one.figures for one in measured] == [2, 2, 2, 2]


def test_what_fails_beside_others_gets_a_turn_alone(tiny: OpenedModel, tmp_path: Path, pretender: type[Pretender]) -> None:
    pretender.failures.append(RuntimeError("out of memory"))
    measured = measure_in_turns(copies(tiny, tmp_path, *"abc"), ["transformers"], QUICK)
    assert "".join(name[0] for name, _ in pretender.started) == "abbca"
    assert pretender.beside[2] == set()
    assert [one.figures for one in measured] == [2, 2, 2]
    assert not pretender.living


@pytest.mark.parametrize(("failure", "asked"), [(Overdue("not done within 5 s"), 5), (UserError("no such layer"), 5)])
def test_what_will_fail_again_has_no_second_try(
    failure: Exception, asked: int, tiny: OpenedModel, tmp_path: Path, pretender: type[Pretender]
) -> None:
    pretender.failures.append(failure)
    measured = measure_in_turns(copies(tiny, tmp_path, *"abc"), ["transformers"], QUICK)
    assert [one.problem for one in measured] == ["", str(failure), ""]
    assert len(pretender.limits) == asked
    assert not pretender.living


def test_an_interruption_leaves_no_process(
    tiny: OpenedModel, tmp_path: Path, pretender: type[Pretender], monkeypatch: pytest.MonkeyPatch
) -> None:
    really = pretender.next

    def interrupted(process: Pretender, limit: float) -> Reading:
        if process.name.startswith("c"):
            raise KeyboardInterrupt
        return really(process, limit)

    monkeypatch.setattr(pretender, "next", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_in_turns(copies(tiny, tmp_path, *"abc"), ["transformers"], QUICK)
    assert pretender.beside[-1] == {"a/transformers", "b/transformers"}
    assert not pretender.living


def test_a_ceiling_that_cannot_be_read_is_said(
    tiny: OpenedModel, tmp_path: Path, pretender: type[Pretender], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(rounds, "run_isolated", fail)
    (row,) = measure_in_turns(copies(tiny, tmp_path, "a"), ["transformers"], QUICK)
    assert row.figures is None
    assert row.problem == "the ceiling could not be read: out of memory"


def test_a_process_that_died_idle_is_started_anew(tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really, killed = rounds.Crew.measure, []

    def measure(crew: rounds.Crew, pair: tuple[str, str], last: bool) -> Reading:
        if last and not killed:
            killed.append(crew.kept[pair][0])
            os.kill(killed[0]._child.pid or 0, signal.SIGKILL)
            killed[0]._child.join()
        return really(crew, pair, last)

    monkeypatch.setattr(rounds.Crew, "measure", measure)
    (row,) = measure_in_turns(copies(tiny, tmp_path, "a"), ["transformers"], QUICK)
    assert killed
    assert row.figures, row.problem


def test_a_process_reads_anew_in_every_round(tiny: OpenedModel) -> None:
    with Isolated(measuring, tiny.path, "transformers", 16, 4, 1) as process:
        first, second = process.next(120), process.next(120)
    assert first.memory == second.memory
    assert first.speed.prompt != second.speed.prompt
    found = pooled([first, second], 1e9)
    assert found.speed.prompt == pytest.approx((first.speed.prompt + second.speed.prompt) / 2)
    assert found.ceiling == pytest.approx(1e9 / (first.memory.expected.step + 2 * first.memory.expected.cache))


def test_a_crash_and_a_time_out_are_rows_and_the_rest_goes_on(tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = rounds.Crew._start

    def start(crew: rounds.Crew, pair: tuple[str, str]) -> Isolated[Reading]:
        crew.protocol = replace(crew.protocol, limit=5 if pair[0] == "hangs" else 120)
        if pair[0] == "good":
            return really(crew, pair)
        return Isolated(abort if pair[0] == "crashes" else sleep_long)

    monkeypatch.setattr(rounds.Crew, "_start", start)
    load_tokenizer(tiny)  # it is tried in a process that stays
    before = set(isolated())
    good, crashed, hung = measure_in_turns(copies(tiny, tmp_path, "good", "crashes", "hangs"), ["transformers"], QUICK)
    assert good.figures
    assert not good.problem
    assert crashed.figures is None
    assert "exit code" in crashed.problem
    assert "\n" not in crashed.problem
    assert hung.figures is None
    assert "not done within 5 s" in hung.problem
    assert not set(isolated()) - before


def abort() -> Iterator[Reading]:
    import os

    os.abort()
    yield


def sleep_long() -> Iterator[Reading]:
    time.sleep(600)
    yield  # type: ignore[misc]


def test_an_absent_runtime_is_a_row_with_the_command_that_installs_it(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    folder = make_artifact(parse("rtn-w4g128"), tiny, calibration, str(tmp_path)).path
    if RUNNERS["gptqmodel"].present():
        pytest.skip("GPTQModel is here")
    (row,) = measure_in_turns({"awq": folder}, ["gptqmodel"], QUICK)
    assert row.figures is None
    assert "pip install" in row.problem


def test_wrong_wishes_are_refused_before_any_work(tiny: OpenedModel) -> None:
    with pytest.raises(UserError, match="no runtime 'tgi'"):
        runners_of(tiny.path, ["tgi"])
    with pytest.raises(UserError, match=r"llamacpp: none runs tiny, which is dense; transformers would"):
        runners_of(tiny.path, ["llamacpp"])
    with pytest.raises(UserError, match="no spread"):
        measure_in_turns({"tiny": tiny.path}, [], Protocol(16, 4, 1, 1))


@pytest.mark.parametrize(
    ("device", "before", "seen"),
    [
        ("cpu", None, ""), ("cpu", "4,5", ""), ("cuda:1", None, "1"), ("cuda:1", "4,5", "5"),
        ("cuda", "4,5", "4,5"), ("auto", "4,5", "4,5"), ("auto", None, None),
    ],
)  # fmt: skip
def test_processes_see_the_gpus_that_they_are_to_compute_on(
    device: str, before: str | None, seen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SEEN, raising=False)
    if before is not None:
        monkeypatch.setenv(SEEN, before)
    with starting_on(device):
        assert os.environ.get(SEEN) == seen
        if device == "cpu":
            assert run_isolated(os.getenv, SEEN).value == ""
    assert os.environ.get(SEEN) == before


def test_what_measures_is_started_on_the_device_asked_for(
    tiny: OpenedModel, tmp_path: Path, pretender: type[Pretender], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, start, bandwidths = [], pretender.__init__, rounds.run_isolated
    monkeypatch.setenv(SEEN, "4,5")

    def started(self: Pretender, *given: Any, **named: Any) -> None:
        seen.append(os.environ[SEEN])
        start(self, *given, **named)

    def read(*given: Any) -> Any:
        seen.append(os.environ[SEEN])
        return bandwidths(*given)

    monkeypatch.setattr(pretender, "__init__", started)
    monkeypatch.setattr(rounds, "run_isolated", read)
    for device in ("cpu", "cuda:1", "auto"):
        measure_in_turns({"a": tiny.path}, ["transformers"], replace(QUICK, device=device))
    assert seen == ["", "", "5", "5", "4,5", "4,5"]


def test_a_device_that_nothing_is_timed_on_is_refused() -> None:
    for device in ("auto", "cpu"):
        check_device(device)
    for device in ("mps", "", "cuda:x", "cpu:0"):
        with pytest.raises(UserError, match=f"no device '{device}' to time runtimes on: expected auto, cpu, cuda, or such as cuda:1"):
            check_device(device)
    with pytest.raises(UserError, match="no device 'cuda:99' here"):
        check_device("cuda:99")


def test_a_speed_on_the_cpu_is_of_the_cpu(tiny: OpenedModel) -> None:
    """Also where there is a GPU."""
    (row,) = measure_in_turns({"a": tiny.path}, ["transformers"], replace(QUICK, device="cpu"))
    assert row.figures, row.problem
    assert row.figures.speed.conditions["device"] == "cpu"


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


def test_a_bandwidth_wanted_twice_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str]] = []

    def measured(size: int, device: str) -> float:
        asked.append((size, device))
        return float(len(asked))

    monkeypatch.setattr(bandwidth, "read_bandwidth", measured)
    assert read_bandwidths([(5, "cpu"), (7, "cpu"), (5, "cpu")]) == [1.0, 2.0, 1.0]
    assert asked == [(5, "cpu"), (7, "cpu")]
