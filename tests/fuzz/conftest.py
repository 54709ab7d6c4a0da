"""The models that cases damage, for every test of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qlab.models.texts import templates, tokenizer_trial
from tests.fuzz.models import Models
from tests.fuzz.trial import COMMANDS, attempt


@pytest.fixture(scope="package", autouse=True)
def sooner() -> Iterator[None]:
    """What computes without end is stopped after a second or two, where users give it five or fifteen: a tiny model's take a tenth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates, "SECONDS", 1)
        patch.setattr(tokenizer_trial, "SECONDS", 2)
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The models, and every command once on a whole one: what libraries load at first is no case's time or memory."""
    folder = tmp_path_factory.mktemp("fuzz")
    made = Models(folder)
    whole = made.copy("plain", folder / "whole")
    for command in COMMANDS:
        (folder / command).mkdir()
        answer = attempt(command, whole, folder / command)
        assert answer.code == 0, answer.err
    return made
