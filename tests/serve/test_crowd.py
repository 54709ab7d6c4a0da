"""Artifacts under the same load, served in turn; and who leads at how many requests at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qlab.artifacts.artifact import quantize_model
from qlab.cli import call
from qlab.cli.bench import lost
from qlab.cli.words import failures
from qlab.evaluate.store.load import load_figures
from qlab.evaluate.store.results import read
from qlab.models.opening import OpenedModel
from qlab.recipes import parse
from qlab.serve.crowd import Served, Service, crossings, leading, serve_in_turn
from qlab.serve.load import Level
from qlab.support.errors import UserError
from qlab.workbook.language.spoken import VARIABLE, say


def level(concurrency: int, throughput: float) -> Level:
    return Level(concurrency, 8, 1.0, {}, {}, {}, {}, 0.0, throughput, 0.0, {}, 0, 0)


def served(name: str, *throughput: float, cache: str = "f16") -> Served:
    return Served(name, "a runtime", cache, [level(4**place, rate) for place, rate in enumerate(throughput)])


def test_formats_that_change_places() -> None:
    four, eight = served("four bits", 100, 180, 200, 210), served("eight bits", 60, 175, 300, 500)
    lost = Served("lost", "a runtime", "f16", problem="it did not start")
    assert leading([eight, four, lost]) == {1: ["four bits"], 4: ["four bits", "eight bits"], 16: ["eight bits"], 64: ["eight bits"]}
    assert crossings([eight, four, lost]) == [
        "1 at a time: four bits gives most tokens/s",
        "4 at a time: eight bits and four bits are not told apart (within 5%)",
        "16 to 64 at a time: eight bits gives most tokens/s",
    ]
    assert crossings([lost]) == crossings([served("silent", 0), lost]) == []  # nobody leads with nothing
    assert served("one", 1, cache="q4_0").label == "one, cache q4_0"


def test_who_leads_is_said_in_french(monkeypatch: pytest.MonkeyPatch) -> None:
    four, eight = served("quatre", 100, 180, 200, 210), served("huit", 60, 175, 300, 500, cache="q8_0")
    monkeypatch.setenv(VARIABLE, "fr")
    assert [say(sentence) for sentence in crossings([eight, four])] == [
        "1 à la fois\u00a0: quatre donne le plus de jetons/s",
        "4 à la fois\u00a0: huit, cache q8_0 et quatre ne se distinguent pas (à 5\u00a0% près)",
        "16 à 64 à la fois\u00a0: huit, cache q8_0 donne le plus de jetons/s",
    ]


def test_what_is_lost_or_wrong_is_said() -> None:
    whole, broken = level(1, 10), replace(level(4, 10), errors={"BadRequestError": 2}, wrong=1)
    found = [served("whole", 1), Served("some", "r", "f16", [whole, broken]), Served("none", "r", "f16", problem="it did not start")]
    assert lost(found) == ["none: it did not start", "some, 4 at a time: lost 2 BadRequestError", "some, 4 at a time: 1 wrong"]
    assert failures([whole, broken]) == ["4 at a time: lost 2 BadRequestError", "4 at a time: 1 wrong"]
    assert failures([whole]) == []


@pytest.fixture(scope="module")
def folders(tiny: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("crowd")
    windows = torch.arange(4 * 32).view(4, 32) % 200
    return {made.path.name: made.path for made in quantize_model(tiny, [parse("f16"), parse("q8_0")], windows, out)}


def test_few_at_a_time_do_not_wait_for_the_prompts_of_many(folders: dict[str, Path]) -> None:
    prompts = ["Return the", "def f(x):", "import", "class A"]
    (found,) = serve_in_turn({"f16": folders["f16"]}, Service(64, 3), prompts, (1, 3), 4, fewest=2)
    assert [level.requests for level in found.levels] == [2, 3]
    assert [level.wrong for level in found.levels] == [0, 0]


def test_each_is_served_with_each_cache(folders: dict[str, Path]) -> None:
    service = Service(64, 4, ("f16", "q8_0"))
    found = serve_in_turn({"f16": folders["f16"]}, service, ["Return the", "def f(x):", "import"], (1, 4), 4)
    assert [one.label for one in found] == ["f16", "f16, cache q8_0"]
    assert {level.requests for one in found for level in one.levels} == {3}
    for one in found:
        assert [level.concurrency for level in one.levels] == [1, 4]
        assert all(level.errors == {} and level.output_throughput > 0 for level in one.levels)
        assert one.held > 0
    assert found[0].expected
    assert found[1].expected
    assert found[0].expected > found[1].expected  # of 256 tokens
    figures = load_figures(found[1], service)
    assert {figure.conditions["cache"] for figure in figures} == {"q8_0"}
    assert {figure.metric for figure in figures} >= {"memory served", "output under load", "TTFT p99", "TPOT p50"}


def test_a_server_that_does_not_start_is_a_row(folders: dict[str, Path], tmp_path: Path) -> None:
    (found,) = serve_in_turn({"f16": folders["f16"]}, Service(64, 1, ("fp8",)), ["a"], (1,), 2)
    assert "llama.cpp keeps its KV cache in f16, q8_0, q4_0, not in fp8" in found.problem
    assert load_figures(found, Service(64, 1, ("fp8",)))[0].reason == found.problem
    with pytest.raises(UserError, match="no runtime 'llama'"):
        serve_in_turn({"f16": folders["f16"]}, Service(64, 1, runtime="llama"), ["a"], (1,), 2)


def test_the_command(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "results.sqlite"
    words = ["bench", *map(str, folders.values()), "--load", "1,2", "--context", "256", "--requests", "2", "--generated-tokens", "4"]
    assert call([*words, "--results", str(store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["name"] for one in told["served"]] == ["f16", "q8_0"]
    assert told["crossings"]
    kept = read(store)
    assert len(kept[kept["metric"] == "output under load"]) == 4
    assert call([*words, "--cache", "f16,q2", "--results", ""]) == 2
    assert "a KV cache in 'q2'" in " ".join(capsys.readouterr().err.split())
    assert call([*words[:2], "--load", "1,none"]) == 2
    assert "--load: 'none': expected a whole number from 1 to 10,000, with commas between" in " ".join(capsys.readouterr().err.split())
    assert call([*words[:2], "--load", "1", "--runtime", "vllm", "--runtime", "llamacpp"]) == 2
    assert "give one --runtime, not 2" in capsys.readouterr().err
