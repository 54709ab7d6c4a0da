"""The link and the history's line move together, or neither does: on a full disk, and for who is killed in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qlab.release import history as module
from qlab.release.history import CURRENT, HISTORY, history, record, settle


def note(name: str, refused: bool = False) -> dict[str, Any]:
    return {"release": name, "refused": ["kl"] if refused else []}


def tried(out: Path) -> list[str]:
    return [entry["release"] for entry in history(out)]


def test_both_move(tmp_path: Path) -> None:
    assert history(tmp_path) == []
    record(tmp_path, note("a" * 12))
    record(tmp_path, note("b" * 12, refused=True))
    assert tried(tmp_path) == ["a" * 12, "b" * 12]
    assert os.readlink(tmp_path / CURRENT) == "a" * 12


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError])
def test_neither_moves_where_the_link_does_not(end: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, note("a" * 12))

    def point(link: Path, target: str) -> None:
        raise end(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "point", point)
        with pytest.raises(end):
            record(tmp_path, note("b" * 12))  # KeyboardInterrupt stands for a process that was killed: nothing cleans up after it
    assert tried(tmp_path) == ["a" * 12]
    assert os.readlink(tmp_path / CURRENT) == "a" * 12
    settle(tmp_path)
    assert (tmp_path / HISTORY).read_bytes().endswith(b"\n")
    record(tmp_path, note("b" * 12))
    assert tried(tmp_path) == ["a" * 12, "b" * 12]
    assert sorted(path.name for path in tmp_path.iterdir()) == [CURRENT, HISTORY]


def test_a_line_whose_link_has_moved_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the link and the line's end."""
    record(tmp_path, note("a" * 12))
    move = module.point

    def killed_after(link: Path, target: str) -> None:
        move(link, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "point", killed_after)
        with pytest.raises(KeyboardInterrupt):
            record(tmp_path, note("b" * 12))
    settle(tmp_path)
    assert os.readlink(tmp_path / CURRENT) == "b" * 12
    assert tried(tmp_path) == ["a" * 12, "b" * 12]
    settle(tmp_path)
    assert tried(tmp_path) == ["a" * 12, "b" * 12]
