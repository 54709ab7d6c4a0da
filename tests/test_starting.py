"""Copies of a process that has imported the libraries, as commands of tests are: like new processes, but for the imports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from qlab import ROOT
from tests.starting import start


def test_a_copy_has_its_own_words_folder_variables_files_and_code(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    variables = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    for words, code in ((["lessons", "--nothing"], 2), (["evaluate", "here", "--results", ""], 2), (["--version"], 0)):
        with out.open("wb") as printed, err.open("wb") as complained:
            assert start(words, printed, complained, tmp_path, variables).wait(120) == code, err.read_text()
    assert out.read_text().startswith("qlab ")
    assert err.read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_copy_in_a_session_of_its_own_is_ended_by_signals(number: int, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, (tmp_path / "out").open("wb") as out:
        silent.settimeout(120)
        process = start(["load", f"http://127.0.0.1:{silent.getsockname()[1]}", "--model", "m"], out, out, session=True)
        connection, _ = silent.accept()
        with connection:
            assert os.getsid(process.pid) == process.pid != os.getsid(0)
            assert process.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
            process.send_signal(number)
            assert process.wait(60) == (130 if number == signal.SIGINT else -number)
    process.send_signal(number)  # nothing is there any more
