"""A failure is one message of a few lines, whatever it is; only with --debug does a traceback stand before it."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab.workbook.reader.about
from qlab.cli import call
from qlab.cli.app import DEBUG
from qlab.cli.words import readable
from qlab.support.errors import UserError

FAILURES: dict[str, tuple[BaseException, int, str]] = {
    "a user's mistake": (UserError("no such thing: expected another"), 2, "no such thing"),
    "a user's mistake of kilobytes": (UserError("x" * 100_000), 2, "xxx"),
    "of many lines": (UserError("line\n" * 100_000), 2, "line"),
    "of many long lines": (UserError(("y" * 500 + "\n") * 1000), 2, "yyy"),
    "with markup": (UserError("[/red] [bold]loud[/x]"), 2, "[/red] [bold]loud[/x]"),
    "with control characters": (UserError("\x1b[2J\x07 \u202e"), 2, "\\x1b[2J\\x07 \\u202e"),
    "with what is no text": (UserError("\udcff"), 2, "\\udcff"),
    "a file": (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "cannot read or write /x/y: Permission denied"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left"),
    "a socket": (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 1, "a fault of qlab's"),
    "a fault": (ValueError("first line\nsecond line"), 1, "qlab failed, and should have said why (ValueError: first line)"),
    "a fault of kilobytes": (KeyError("z" * 100_000), 1, "KeyError"),
    "a fault without words": (ZeroDivisionError(), 1, "ZeroDivisionError"),
    "recursion": (RecursionError("maximum recursion depth exceeded"), 1, "RecursionError"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
}  # fmt: skip


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """`qlab lessons` fails as the parameter says."""

    def fail(**_: Any) -> None:
        raise request.param

    monkeypatch.setattr(qlab.workbook.reader.about, "lesson_names", fail)


@pytest.mark.parametrize(("failing", "code", "said"), FAILURES.values(), ids=FAILURES, indirect=["failing"])
def test_a_failure_is_one_short_message(failing: None, code: int, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["lessons"]) == code
    printed = capfd.readouterr()
    assert said in " ".join(printed.err.split()) or said in printed.err
    assert "Traceback" not in printed.err
    assert "\x1b" not in printed.err
    assert len(printed.err) < 3000
    assert printed.out == ""


@pytest.mark.parametrize(("failing", "code", "said"), FAILURES.values(), ids=FAILURES, indirect=["failing"])
@pytest.mark.parametrize("words", [[DEBUG, "lessons"], ["lessons", DEBUG]])
def test_with_debug_a_traceback_stands_before_it(
    words: list[str], failing: None, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(words) == code
    printed = capfd.readouterr().err
    assert said in " ".join(printed.split()) or said in printed
    if code != 130:
        assert "Traceback (most recent call last)" in printed
        assert "in fail" in printed
        assert printed.index("Traceback") < printed.rindex("error:")


def test_a_word_that_no_command_takes_is_one_message_with_and_without_debug(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["lessons", "--no-such"], ["no-such"], ["load"], ["lessons", "x" * 10_000]):
        assert call(words) == 2
        assert "Traceback" not in capfd.readouterr().err
        assert call([*words, DEBUG]) == 2
        assert "Traceback" in capfd.readouterr().err


@settings(max_examples=80, deadline=None)
@given(st.text() | st.text(max_size=5).map(lambda text: text * 4000))
def test_any_message_is_a_few_printable_lines(message: str) -> None:
    shown = readable(message)
    assert len(shown) < 2500
    assert all(character.isprintable() or character in "\n\t" for character in shown)
    if message.isprintable() and len(message) < 600:
        assert shown == message
