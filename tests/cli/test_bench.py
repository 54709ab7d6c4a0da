"""What artifacts are called in a table of speeds, and options that would be ignored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from qlab.cli import call
from qlab.cli.app import app
from qlab.cli.bench import TIMED, UNDER_LOAD, by_short_name

VALUES = {"--dtype": "auto", "--device": "auto", "--cache": "f16"}  # also the default is refused; the others take 16


def named(*paths: str) -> list[str]:
    return list(by_short_name([SimpleNamespace(path=Path(path), name=Path(path).name) for path in paths]))


def test_as_many_parts_as_tell_them_apart() -> None:
    assert named("/a/q4_k_m", "/a/nf4") == ["q4_k_m", "nf4"]
    assert named("/a/x/m", "/b/x/m", "/c/m") == ["a/x/m", "b/x/m", "c/m"]
    assert named("/a/nf4", "/b/nf4", "/b/q8_0") == ["a/nf4", "b/nf4", "q8_0"]


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert call(words) == 2
    return " ".join(capsys.readouterr().err.split())


def test_every_option_of_bench_says_whether_it_goes_with_load() -> None:
    options = typer.main.get_command(app).commands["bench"].params  # type: ignore[attr-defined]
    names = {option.opts[0] for option in options} - {"artifacts"}
    assert names - {*TIMED, *UNDER_LOAD} == {"--runtime", "--generated-tokens", "--load", "--results", "--json"}
    assert {option.opts[0] for option in options if (getattr(option, "help", "") or "").startswith("With --load")} == set(UNDER_LOAD)


@pytest.mark.parametrize("option", UNDER_LOAD)
def test_how_to_serve_is_refused_where_nothing_is_served(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(["bench", "embedded", option, VALUES.get(option, "16")], capsys)
    assert said == f"error: {option} needs --load, such as --load 1,4,16: it says how artifacts are served, or leave it out"


@pytest.mark.parametrize("option", TIMED)
def test_how_to_time_is_refused_where_nothing_is_timed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(["bench", "embedded", "--load", "1", option, VALUES.get(option, "16")], capsys)
    assert said == f"error: {option} says how artifacts are timed, and with --load they are served: leave out one of the two"


@pytest.mark.parametrize("words", [["--tokens", "16"], ["--prompts", "p.jsonl"]])
def test_what_to_send_is_refused_where_nothing_is_sent(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(["serve", "embedded", *words], capsys).startswith(f"error: {words[0]} needs --load, such as --load 1,4,16: ")
    for instead in (["--dry-run"], ["--write", "files"]):
        said = refusal(["serve", "embedded", *instead, *words], capsys)
        assert said == f"error: {words[0]} needs a server, and --dry-run and --write start none: leave it out"
        assert refusal(["serve", "embedded", *instead, "--load", "1"], capsys).startswith("error: --load needs a server")


def test_a_device_that_is_not_here_is_told_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no device 'mps' to time runtimes on" in refusal(["bench", "/nowhere", "--device", "mps"], capsys)
