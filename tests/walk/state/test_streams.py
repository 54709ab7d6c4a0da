"""Activations that are held in memory: the same bytes, files written beside the work, and what is left when it stops."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.models.opening import OpenedModel
from qlab.recipes import Integers, parse
from qlab.walk import walk as module
from qlab.walk.state.activations import Activations, Writer
from qlab.walk.state.streams import Streams, held

SHAPE = (3, 4, 5)
RECIPES = ["awq-w4g32", "gptq-w4g32-sequential"]


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside a GPU with room."""
    monkeypatch.setattr(module, "held", lambda *_: True)


def values(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def made(source: OpenedModel, windows: Tensor, out: Path) -> dict[str, bytes]:
    artifacts = quantize_model(source, [parse(name) for name in RECIPES], windows, out)
    return {artifact.path.name: (artifact.path / "model.safetensors").read_bytes() for artifact in artifacts}


@pytest.mark.usefixtures("holding")
def test_held_or_in_files_the_bytes_are_the_same(
    tiny: OpenedModel, calibration: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = made(tiny, calibration, tmp_path / "memory")
    monkeypatch.setattr(module, "held", lambda *_: False)
    assert in_memory == made(tiny, calibration, tmp_path / "files")


@pytest.mark.usefixtures("holding")
def test_interrupted_it_goes_on_from_the_last_block_with_files(
    tiny: OpenedModel, calibration: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(tiny, calibration, tmp_path / "whole")
    quantize = Integers.quantize_block
    done: list[int] = []

    def until_the_second(self: Integers, source: OpenedModel, block: Any, calibration: Any) -> Any:
        if block.index == 1:
            raise KeyboardInterrupt
        return quantize(self, source, block, calibration)

    def noted(self: Integers, source: OpenedModel, block: Any, calibration: Any) -> Any:
        done.append(block.index)
        return quantize(self, source, block, calibration)

    monkeypatch.setattr(Integers, "quantize_block", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        made(tiny, calibration, tmp_path / "out")
    (journal,) = tmp_path.glob("out/.walk-*/journal.json")
    first = json.loads(journal.read_text())["blocks"]
    monkeypatch.setattr(Integers, "quantize_block", noted)
    assert made(tiny, calibration, tmp_path / "out") == whole
    assert min(done) == first


def test_what_a_slow_disk_has_no_time_for_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the first block are still being written when the second is there: it gets none, and its end is not saved."""
    gate, append = threading.Event(), Activations.append
    monkeypatch.setattr(Activations, "append", lambda self, batch: (gate.wait(20), append(self, batch))[1])
    streams, saved = Streams(tmp_path, SHAPE, hold=True), list[str]()

    def save(text: str) -> Callable[[], None]:
        return lambda: saved.append(text)

    for index in (0, 1, 2):
        streams.new("a", index).write(iter([values(index)]))
        streams.finish(index - 1, save(f"inputs of {index}"))
    assert saved == []
    assert [bool(streams.has("a", index)) for index in (0, 1, 2)] == [False, False, True]
    assert torch.cat(list(streams.of("a", 2).batches(2))).equal(values(2))
    gate.set()
    while streams.writer and streams.writer.busy():
        pass
    assert saved == ["inputs of 0"]
    streams.new("a", 3).write(iter(values(3).split(1)))
    streams.finish(2, save("inputs of 3"))
    streams.close()
    assert saved == ["inputs of 0", "inputs of 3"]
    assert [path.name for path in tmp_path.iterdir()] == ["a-3.bin"]
    again = Streams(tmp_path, SHAPE, hold=False)
    assert torch.cat(list(again.of("a", 3).batches(2))).equal(values(3))
    assert again.of("a", 3).pick(torch.tensor([2, 0])).equal(values(3)[[2, 0]])


@pytest.mark.usefixtures("holding")
def test_a_disk_that_fails_ends_the_walk_and_what_follows_is_not_saved(
    tiny: OpenedModel, calibration: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Activations.append

    def full(self: Activations, batch: Tensor) -> None:
        if self.path.stem.endswith("-1"):
            raise OSError(28, "No space left on device")
        append(self, batch)

    monkeypatch.setattr(Activations, "append", full)
    with pytest.raises(Exception, match=r"No space left|disk is full"):
        made(tiny, calibration, tmp_path / "out")
    assert not list(tmp_path.glob("out/[!.]*"))


def test_a_task_after_a_failed_one_is_not_done() -> None:
    writer, done = Writer(), list[int]()

    def fails() -> None:
        raise OSError(28, "No space left on device")

    writer.do(fails)
    writer.do(lambda: done.append(1))
    with pytest.raises(OSError, match="No space"):
        writer.close()
    assert done == []


@pytest.mark.gpu
def test_the_second_gpu_alone_is_used_where_it_is_asked_for(tiny: OpenedModel, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there are no two GPUs here")
    words = f"--windows 4 --length 32 --device cuda:1 --profile --recipe gptq-w4g32 --recipe q4_k_m --out {tmp_path} --model {tiny.path}"
    code = f"import sys, torch; from qlab.cli import call; code = call('quantize {words}'.split()); "
    code += "print('first used:', torch._C._cuda_hasPrimaryContext(0), code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["first used: False 0"], done.stderr


def test_a_cpu_reads_files() -> None:
    assert not held(SHAPE, 1, "cpu")
    assert held(SHAPE, 1, "cuda")
    assert not held((10**6, 2048, 8192), 1, "cuda")
