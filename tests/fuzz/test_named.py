"""Named inputs that are damaged or hostile: each is refused by one short message, or works rightly, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz import artifacts, configs, ggufs, tokenizers, weights
from tests.fuzz.damage import REFUSED, WORKS, Case
from tests.fuzz.models import Models
from tests.fuzz.trial import TIMES, attempt

TABLES = {
    "weights": weights.CASES,
    "config": configs.CASES,
    "tokenizer": tokenizers.CASES,
    "artifact": artifacts.CASES,
    "gguf": ggufs.CASES,
}
CASES = [(f"{table}: {case.name}", case) for table, cases in TABLES.items() for case in cases]


@pytest.fixture
def model(models: Models, tmp_path: Path) -> Iterator[Callable[[Case], Path]]:
    """A model, damaged as a case says."""

    def damaged(case: Case) -> Path:
        folder = models.copy(case.model, tmp_path / "model")
        return case.change(folder) or folder

    yield damaged
    assert not (tmp_path / "RAN").exists(), "code that lies with the model was run"


def test_no_name_stands_for_two_cases() -> None:
    names = [name for name, _ in CASES]
    assert len(names) == len(set(names)) > 700


@pytest.mark.parametrize(("number", "case"), list(enumerate(case for _, case in CASES)), ids=[name for name, _ in CASES])
def test_a_named_input(number: int, case: Case, model: Callable[[Case], Path], tmp_path: Path) -> None:
    """By one of the case's commands, each in its turn over the table; `make fuzz` tries them all."""
    path = model(case)
    for command in case.commands if TIMES > 1 else [case.commands[number % len(case.commands)]]:
        work = tmp_path / "work" if len(case.commands) == 1 else tmp_path / command
        work.mkdir(exist_ok=True)
        answer = attempt(command, path, work)
        assert not answer.fault(), f"{command}: {answer.fault()}"
        assert case.outcome != REFUSED or answer.code == 2, f"{command} took it: {answer.out[-300:]}"
        assert case.outcome != WORKS or answer.code == 0, f"{command}: {answer.err}"
        assert answer.code == 0 or case.says in answer.err, f"{command}: {answer.err}"
