"""A full disk is recognised however it is told, and nothing else is taken for one."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from qlab.support.disk.room import full, full_by, no_room, room_for
from qlab.support.errors import UserError
from qlab.support.processes.process import run_isolated


def by_python() -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def by_numpy() -> None:
    np.zeros(1 << 20).tofile("/dev/full")


def by_safetensors() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def by_sqlite() -> None:
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 2")
    database.execute("CREATE TABLE t (a)")
    database.execute("INSERT INTO t VALUES (zeroblob(100000))")


def by_another(error: type[Exception] = RuntimeError) -> None:
    try:
        by_python()
    except OSError as cause:
        raise error("could not save") from cause


@pytest.mark.parametrize("failing", [by_python, by_numpy, by_safetensors, by_sqlite, by_another])
def test_it_is_one_message_with_what_is_needed_and_free(failing: Callable[[], None], tmp_path: Path) -> None:
    said = r"the disk is full \(No space left on device\): about 5\.0 MB are needed in .*, where .* MB are free"
    with pytest.raises(UserError, match=said), room_for(tmp_path / "out" / "deeper", 5e6):
        failing()


def test_in_another_process_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"more is needed in {tmp_path}"), room_for(tmp_path):
        run_isolated(by_python)


def test_the_real_library_says_what_is_recognised(tmp_path: Path) -> None:
    """As the error that it raises for any other number."""
    with pytest.raises(SafetensorError, match=r"\(os error \d+\)") as caught:
        save_file({"a": torch.zeros(2)}, tmp_path / "missing" / "file")
    assert not full(caught.value)


def test_other_errors_are_themselves() -> None:
    with pytest.raises(PermissionError), room_for(Path("/")):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert full(ValueError("[Errno 28] in a value")) == 0
    assert full(sqlite3.OperationalError("no such table")) == 0
    assert full_by("OSError: [Errno 28] No space left on device") == errno.ENOSPC
    assert full_by("OSError: [Errno 2] No such file") == full_by("28 files requested") == 0
    assert "File too large" in no_room(errno.EFBIG)
