"""Copies of a process that has imported the libraries: no GPU is touched before, Ctrl-C does not end it, no folder of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from qlab import ROOT
from qlab.models.opening import locate
from qlab.support.disk.scratch import Scratch
from qlab.support.processes import starting
from qlab.support.processes.process import run_isolated
from qlab.workbook.batch.copied import LESSONS_IMPORT, imports_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are started anew")


def test_no_gpu_is_touched_before_a_child_is_copied() -> None:
    program = f"""
import torch
asked = []
for name in ("is_available", "device_count", "init", "_lazy_init"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
for name in {(*starting.PRELOADED, *imports_of(locate("embedded")))!r}:
    __import__(name)
print(asked)
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300).stdout == "[]\n"


def test_the_architecture_s_code_is_imported_before() -> None:
    assert imports_of(locate("embedded"))[-1] == "transformers.models.llama.modeling_llama"


@pytest.mark.parametrize("kind", [None, "", "nosuch", 5, [], {}])
def test_a_model_of_no_known_type_is_left_to_what_refuses_it(kind: object) -> None:
    source: Any = SimpleNamespace(config={"model_type": kind})
    assert imports_of(source) == LESSONS_IMPORT


def method() -> str:
    """Of this process: how it was started, and whether Ctrl-C reaches it."""
    copied = forkserver.get_inherited_fds() is not None
    return f"{copied} {signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])}"


def test_a_child_is_a_copy_which_ctrl_c_reaches_and_its_own_is_not() -> None:
    assert run_isolated(method).value == "True False"
    assert run_isolated(run_isolated, method).value.value == "False False"


@pytest.mark.parametrize(("sleeps", "waits", "code"), [(1.0, 60, 0), (600, 0.5, -signal.SIGKILL)])
def test_copies_have_time_to_end_and_then_are_ended(sleeps: float, waits: float, code: int) -> None:
    context = starting.starting()
    copy = context.Process(target=time.sleep, args=(sleeps,), daemon=True)
    copy.start()
    starting.end_copies(waits)
    assert not psutil.pid_exists(copy.pid or 0)
    copy.join()
    assert copy.exitcode == code


def test_a_child_has_what_is_to_be_imported_before() -> None:
    program = """
from qlab.support.processes import starting
from qlab.support.processes.process import run_isolated
from tests.support.processes.test_starting import has_wave
starting.PRELOADED = ()
starting.preload(*{modules})
print(run_isolated(has_wave).value)
"""
    for modules, answer in ((("wave",), "True"), ((), "False")):
        command = [sys.executable, "-c", program.format(modules=modules)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.stdout.strip() == answer, done.stderr


def has_wave() -> bool:
    """Whether this process has imported a module that nothing here imports."""
    return "wave" in sys.modules


def test_a_folder_whose_name_is_too_long_for_a_socket_has_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "sockets", lambda: "/" + "x" * starting.LONGEST)
    assert run_isolated(method).value == "False False"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_whoever_is_ended_leaves_neither_a_process_nor_a_folder(end: signal.Signals) -> None:
    program = """
import signal
from multiprocessing import forkserver
from qlab.support.processes.starting import starting
signal.signal(signal.SIGINT, signal.default_int_handler)
starting()
print(forkserver._forkserver._forkserver_pid, flush=True)
signal.pause()
"""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="qlab-") as folder:  # short, as usual ones are
        place = Path(folder)
        started = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(place)},
            start_new_session=True,
        )
        assert started.stdout is not None
        copied = psutil.Process(int(started.stdout.readline()))
        os.killpg(started.pid, end) if end == signal.SIGINT else started.kill()
        said = started.communicate(timeout=60)[1]
        psutil.wait_procs([copied], 120)
        assert not copied.is_running()
        assert said.count("Traceback") == (end == signal.SIGINT)  # its own alone
        Scratch(place).remove()  # whoever makes the next folder there sweeps
        assert list(place.iterdir()) == []
