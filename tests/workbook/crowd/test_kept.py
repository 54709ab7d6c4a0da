"""Loads go from lesson 6 to lesson 7, and only those of this code on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlab.models.opening import OpenedModel
from qlab.serve.crowd import Served
from qlab.serve.load import Level
from qlab.workbook.batch.runner import loads_key
from qlab.workbook.crowd import kept
from qlab.workbook.crowd.kept import keep_loads, kept_loads, place_of


def served(name: str, *rates: float) -> Served:
    return Served(name, "r", "f16", [Level(4**place, 8, 1.0, {}, {}, {}, {}, 0.0, rate, 0.0, {}, 0, 0) for place, rate in enumerate(rates)])


def test_loads_are_read_as_they_were_kept(tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_loads(tiny, tmp_path) == {}
    keep_loads(tiny, tmp_path, [served("q8_0", 10, 30.5), served("f16", 5), Served("lost", "r", "f16", problem="it did not start")])
    found = kept_loads(tiny, tmp_path)
    assert found == {"q8_0": {1: 10, 4: 30.5}, "f16": {1: 5}}
    assert list(found) == ["q8_0", "f16"]  # as they were served
    monkeypatch.setattr(kept, "code_hash", lambda: "other")
    assert kept_loads(tiny, tmp_path) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"loads": 3}'])
def test_a_damaged_file_is_as_none(text: str, tiny: OpenedModel, tmp_path: Path) -> None:
    place = place_of(tiny, tmp_path)
    place.parent.mkdir(parents=True)
    place.write_text(text)
    assert kept_loads(tiny, tmp_path) == {}
    keep_loads(tiny, tmp_path, [served("f16", 5)])
    whole = json.loads(place.read_text())
    for loads in (7, [["f16", 3]], [["f16", {"one": 1}]], [["f16"]]):
        place.write_text(json.dumps(whole | {"loads": loads}))
        assert kept_loads(tiny, tmp_path) == {}


def test_lesson_7_is_run_again_once_there_are_other_loads(tiny: OpenedModel, tmp_path: Path) -> None:
    parameters = {"model": str(tiny.path), "work": str(tmp_path)}
    keys = [loads_key("07_benchmarks", parameters)]
    for rate in (5, 6):
        keep_loads(tiny, tmp_path, [served("f16", rate)])
        keys.append(loads_key("07_benchmarks", parameters))
    assert keys[0] == loads_key("06_deployment", parameters) == loads_key("07_benchmarks", {"model": str(tiny.path)}) == ""
    assert len(set(keys)) == 3
