"""JSON of users: read, or refused by one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlab.models.texts.jsonl import read_utf8
from qlab.support.errors import UserError
from qlab.support.reading import DEEPEST, read_json, too_deep


def nested(depth: int, lists: bool = False) -> Any:
    """So many objects, or lists, within each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


@pytest.mark.parametrize("lists", [False, True])
def test_what_is_nested_too_deeply_is_known(lists: bool) -> None:
    assert not too_deep(nested(DEEPEST, lists))
    assert too_deep(nested(DEEPEST + 1, lists))
    assert too_deep([1, {"b": 2}, nested(DEEPEST, lists)])
    assert not too_deep({"a" * 1000: "[" * 1000})


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="this system has no /proc")
def test_a_file_of_the_systems_that_cannot_be_read_is_one_message() -> None:
    with pytest.raises(UserError, match="cannot read mem: "):
        read_utf8(Path("/proc/self/mem"))


@pytest.mark.parametrize("depth", [DEEPEST + 1, 500, 100_000])
def test_a_file_that_is_nested_too_deeply_is_refused(depth: int, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(UserError, match=r"/config\.json is nested too deeply"):
        read_json(file)
    file.write_text(json.dumps(nested(DEEPEST)))
    assert read_json(file) == nested(DEEPEST)
