"""What artifacts are called in a table of speeds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from qlab.cli.bench import by_short_name


def named(*paths: str) -> list[str]:
    return list(by_short_name([SimpleNamespace(path=Path(path), name=Path(path).name) for path in paths]))


def test_as_many_parts_as_tell_them_apart() -> None:
    assert named("/a/q4_k_m", "/a/nf4") == ["q4_k_m", "nf4"]
    assert named("/a/x/m", "/b/x/m", "/c/m") == ["a/x/m", "b/x/m", "c/m"]
    assert named("/a/nf4", "/b/nf4", "/b/q8_0") == ["a/nf4", "b/nf4", "q8_0"]
