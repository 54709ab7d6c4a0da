"""A function that a reader has written, tried on small cases beside qlab's own: what is wrong is said in words.

The words come from typical mistakes, each kept as a function too: where the reader's results are a mistake's on every case, that was it.
What exercises keep as data (mistakes, hints, what is expected) is in English; it is translated where it is said.
"""

from __future__ import annotations

import copy
import inspect
import linecache
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from qlab.workbook.language.spoken import gettext, say

LONGEST = 5.0  # seconds that a reader's function may take for all cases
LARGEST = 1 << 20  # numbers of a result that are looked at

Case = Mapping[str, Any]
"""The arguments of one call, by name, in their order."""


class Misread(Exception):
    """A result of the wrong kind, `result`, or none at all; says what was expected."""

    result: Any = None


class Unwritten(Exception):
    """The function has a gap still."""


class Form(Protocol):
    """What a function is to return."""

    def read(self, value: Any, expected: Any) -> Any:
        """The result in the form in which results are compared; raises Misread."""

    def same(self, found: Any, expected: Any) -> bool:
        """Whether two results are equal, but for rounding."""


@dataclass(frozen=True)
class Mistake:
    """A typical wrong way, as a function of the case, and what the reader is told."""

    way: Callable[..., Any]
    said: str


@dataclass(frozen=True)
class Written:
    """A function that the reader writes.

    `expected` is qlab's own, called with the arguments of each of `cases`; `solution` is a way to write it, shown on demand.
    `differs` says in words how a result, which no mistake explains, differs from the one expected: case, found, expected → a sentence.
    """

    solution: Callable[..., Any]
    expected: Callable[..., Any]
    cases: Callable[[], Sequence[Case]]
    form: Form
    mistakes: tuple[Mistake, ...]
    differs: Callable[[Case, Any, Any], str]
    hints: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """What is wrong, in words, and the first case that shows it: arguments, the reader's result, the one expected."""

    said: str
    case: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Numbers:
    """Numbers of the same shape as expected; `what` names them, `tolerance` is relative to the largest expected."""

    what: str
    tolerance: float = 1e-3

    def read(self, value: Any, expected: Any) -> Tensor:
        found, wanted = as_tensor(value), as_tensor(expected)
        assert wanted is not None
        if found is None:
            raise Misread(say("Your function returns {kind}. Expected: {what}.", kind=kind_of(value), what=self.what))
        if found.squeeze().shape != wanted.squeeze().shape:
            text = "Your result has shape {found} instead of {wanted}. Expected: {what}."
            said = say(text, found=str(list(found.shape)), wanted=str(list(wanted.shape)), what=self.what)
            turned = wanted.ndim == 2 and found.shape == wanted.T.shape
            raise Misread(f"{said} {gettext('Rows and columns are exchanged.')}" if turned else said)
        if not bool(found.isfinite().all()):
            raise Misread(gettext("Your result holds NaN or infinity. Something is divided by zero in the case below."))
        return found.reshape(wanted.shape)

    def same(self, found: Any, expected: Any) -> bool:
        wanted = as_tensor(expected)
        found = as_tensor(found)
        assert wanted is not None
        assert found is not None
        largest = float(wanted.abs().max())
        return bool(torch.allclose(found, wanted, rtol=0, atol=self.tolerance * largest + 1e-12, equal_nan=True))


@dataclass(frozen=True)
class Names:
    """Some of the names of a case, in any order and collection."""

    what: str

    def read(self, value: Any, expected: Any) -> frozenset[str]:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise Misread(say("Your function returns {kind}. Expected: {what}.", kind=kind_of(value), what=self.what))
        names = list(value)
        if odd := [name for name in names if not isinstance(name, str)]:
            raise Misread(say("Your result holds {kind}. Expected: {what}.", kind=kind_of(odd[0]), what=self.what))
        return frozenset(names)

    def same(self, found: Any, expected: Any) -> bool:
        return frozenset(found) == frozenset(expected)


def fault_of(written: Written, function: Any) -> Fault | None:
    """What is wrong with a reader's function; None where every case comes out as expected.

    Raises:
        Unwritten: it is not there yet, returns nothing, or raises NotImplementedError.
    """
    if function is None or function is ...:
        raise Unwritten
    if not callable(function):
        return Fault(say("The check needs your function itself, not {kind}: give its name without brackets.", kind=kind_of(function)))
    done: list[tuple[Case, Any, Any]] = []
    try:
        with limited(LONGEST):
            for case in written.cases():
                expected = written.expected(**case)
                done.append((case, read_result(written.form, function, case, expected), expected))
    except Misread as misread:
        values = {**case, **({} if misread.result is None else {gettext("your result"): misread.result})}
        return wrong(written, done) or Fault(str(misread), values)
    except Unwritten:
        if not done:
            raise
        return wrong(written, done) or Fault(gettext("Your function returns nothing for the case below."), case)
    except TimeoutError:
        text = "Your function takes longer than {seconds:.0f} seconds for small cases, and was stopped: does a loop never end?"
        return Fault(say(text, seconds=LONGEST))
    return wrong(written, done)


def read_result(form: Form, function: Callable[..., Any], case: Case, expected: Any) -> Any:
    """The reader's result for a case, which the function gets a copy of.

    Raises:
        Misread: the function failed, or returned another kind of thing.
        Unwritten: it returned nothing, or raised NotImplementedError.
    """
    try:
        value = function(*copy.deepcopy(list(case.values())))
    except NotImplementedError:
        raise Unwritten from None
    except TimeoutError:
        raise
    except Exception as error:  # whatever a reader's code raises is told to the reader
        raise Misread(failure(function, error)) from None
    if value is None or value is ...:
        raise Unwritten
    try:
        return form.read(value, expected)
    except Misread as misread:
        misread.result = value
        raise


def wrong(written: Written, done: Sequence[tuple[Case, Any, Any]]) -> Fault | None:
    """The fault of results that differ from what was expected; None where none does."""
    form = written.form
    failed = next(((case, found, expected) for case, found, expected in done if not form.same(found, expected)), None)
    if failed is None:
        return None
    case, found, expected = failed
    values = {**case, gettext("your result"): found, gettext("expected"): expected}
    for mistake in written.mistakes:
        if all(form.same(found, mistake.way(**case)) for case, found, _ in done):
            return Fault(gettext(mistake.said), values)
    return Fault(written.differs(case, found, expected), values)


def first_difference(found: Tensor, expected: Tensor, tolerance: float) -> str:
    """The first number that is not as expected, with its place."""
    apart = (found - expected).abs() > tolerance * float(expected.abs().max())
    at = apart.nonzero()[0].tolist()
    if len(at) == 2:
        text = "The result is wrong at row {row}, column {column} (counted from 0): {found:.4g}, where {expected:.4g} was expected."
    elif at:
        text = "The result is wrong at place {row} (counted from 0): {found:.4g}, where {expected:.4g} was expected."
    else:
        text = "The result is wrong: {found:.4g}, where {expected:.4g} was expected."
    place = dict(zip(("row", "column"), at))
    return say(text, found=float(found[tuple(at)]), expected=float(expected[tuple(at)]), **place)


def failure(function: Callable[..., Any], error: Exception) -> str:
    """An error in a reader's function as one sentence, with its line of the function."""
    said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if code and frame.filename == code.co_filename]
    if not frames:
        return say("Your function could not be called with the arguments below ({error}).", error=said)
    line = (linecache.getline(frames[-1].filename, frames[-1].lineno or 0)).strip()
    if line:
        return say("Your function stops with {error}, at the line: {line}", error=said, line=line)
    return say("Your function stops with {error}.", error=said)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer, where signals can be had: in a main thread, as a notebook's cells run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def as_tensor(value: Any) -> Tensor | None:
    """Numbers of torch, numpy or Python, in lists too, as a float64 tensor; None where they are none, or far too many."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        found = value.detach().cpu().double() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError, RuntimeError):
        return None
    return found if 0 < found.numel() <= LARGEST else None


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    name = type(value).__name__
    if isinstance(value, (list, tuple, dict, set)):
        return say("a {type} of length {length}", type=name, length=len(value))
    return say("an {type}", type=name) if name[0].lower() in "aeiou" else say("a {type}", type=name)
