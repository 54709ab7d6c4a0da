"""Every number of every command has bounds, and what lies beyond them is one short message, in no time."""

from __future__ import annotations

import time
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.cli import call
from qlab.cli.app import app
from qlab.cli.numbers import Bounded

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def bounds(option: Any) -> Any:
    """The parser of an option's type, where it has one of its own."""
    return option.type_descriptor.parameter_info.parser if option.type_descriptor else None


NUMBERS = [
    (name, option.opts[0], bounds(option))
    for name, command in sorted(COMMANDS.items())
    for option in command.params
    if isinstance(bounds(option), Bounded)
]
NEEDED = {
    "quantize": ["--recipe", "nf4", "--out", "o"],
    "finetune": ["m", "--text", "t", "--out", "o"],
    "release": ["--out", "o"],
    "load": ["http://x", "--model", "m"],
}


def test_no_number_is_without_bounds() -> None:
    assert len(NUMBERS) > 25
    for name, command in COMMANDS.items():
        loose = [
            option.name
            for option in command.params
            if option.type_descriptor and option.type_descriptor.annotation in (int, float) and not bounds(option)
        ]
        assert loose == [], name


@pytest.mark.parametrize("text", ["9" * 5000, "-" + "9" * 5000, "1e400", "nan", "inf", "-1", "", "0x10", "1_0" * 30, "٣" * 50, "1\x00"])
@pytest.mark.parametrize(("name", "option", "bounded"), NUMBERS)
def test_absurd_numbers_are_one_message(name: str, option: str, bounded: Bounded, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call([name, *NEEDED.get(name, ["embedded"]), f"{option}={text}"]) == 2
    said = capsys.readouterr().err
    assert bounded.range in said
    assert len(said) < 300


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.integers().map(str), st.floats().map(str), st.text(max_size=60)))
def test_a_bounded_number_is_within_or_refused(text: str) -> None:
    started = time.monotonic()
    for bounded in (Bounded(1, 1024), Bounded(0.0, 1.0)):
        try:
            assert bounded.least <= bounded(text) <= bounded.most
        except typer.BadParameter:
            continue
    assert time.monotonic() - started < 10
