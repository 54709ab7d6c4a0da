"""Where Ray is not installed, the command says which command installs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from qlab.support.errors import UserError
from qlab.sweep.workers.connecting import connect


def test_the_message_names_the_command_that_installs_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="'make cluster' installs it"):
        connect("auto", tmp_path, tmp_path / ".lock", 1, "cpu")
