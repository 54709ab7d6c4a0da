"""What kernels print stays away from the terminal, and is told where they die."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from nbclient.exceptions import CellExecutionError, DeadKernelError

from qlab import ROOT
from qlab.workbook.batch import copied as copying
from qlab.workbook.batch.kernels import no_interruption
from qlab.workbook.batch.runner import FAILED, run_lessons
from tests.workbook.batch.test_runner import lessons  # noqa: F401  (a fixture)


@pytest.mark.parametrize("copied", [True, False])
def test_a_kernel_that_does_not_start_is_told_with_what_it_printed(
    copied: bool,
    lessons: dict[str, dict[str, Any]],  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = tmp_path / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text("import os\nprint('out of luck', flush=True)\nos._exit(3)\n")
    monkeypatch.setenv("IPYTHONDIR", str(profile.parent))
    if not copied:
        monkeypatch.setattr(copying, "LAUNCHER", ["another's"])
    (found,) = run_lessons({"01_fine": lessons["01_fine"]}, tmp_path / "out", False, lambda *_: None)
    assert found.state == FAILED
    assert "Its kernel printed last: " in found.error
    assert "out of luck" in found.error
    assert "out of luck" not in "".join(capfd.readouterr())


PROGRAM = """
import sys
import nbformat
from nbformat.v4 import new_code_cell, new_notebook
import papermill
import qlab.workbook.batch.kernels
folder, source = sys.argv[1:]
notebook = new_notebook(cells=[new_code_cell(source)])
notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
nbformat.write(notebook, folder + "/lesson.ipynb")
papermill.execute_notebook(folder + "/lesson.ipynb", None, {}, engine_name="qlab", progress_bar=False)
"""


def lesson_in(folder: Path, source: str) -> subprocess.Popen[str]:
    """A process that runs a lesson of one cell, as a run does."""
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), source], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_a_lesson_s_kernel_and_the_processes_it_starts_are_copies_of_one_and_go_with_whoever_started_it(tmp_path: Path) -> None:
    """Whoever started it is killed outright in the middle of the lesson."""
    waits = "from tests.workbook.batch.telling import waits"
    started = lesson_in(
        tmp_path, f"from qlab.support.processes.process import run_isolated\n{waits}\nrun_isolated(waits, {str(tmp_path)!r})"
    )
    try:
        told = tmp_path / "told"
        assert waited(told.exists, 120)
        copied, kernel, child = (psutil.Process(int(number)) for number in told.read_text().split())
        assert child.ppid() == kernel.ppid() == copied.pid
        assert copied.ppid() == started.pid
    finally:
        started.kill()
        started.communicate()
    assert waited(lambda: not any(process.is_running() for process in (copied, kernel, child)), 60)


def test_what_a_killed_kernel_leaves_is_no_warning_of_the_run(tmp_path: Path) -> None:
    kept = "kept = [multiprocessing.get_context('spawn').RLock() for _ in range(3)]"
    process = lesson_in(tmp_path, f"import multiprocessing, os\n{kept}\nos.kill(os.getpid(), 9)")
    said = process.communicate(timeout=300)[1]
    assert "DeadKernelError" in said
    assert "semaphore" not in said


def waited(true: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes true within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not true():
        time.sleep(0.1)
    return true()


INTERRUPTIONS = [KeyboardInterrupt(), CellExecutionError("a cell", "KeyboardInterrupt", ""), DeadKernelError("Kernel died")]


@pytest.mark.parametrize("error", [*INTERRUPTIONS, ValueError()])
def test_asyncio_does_not_log_an_interruption_as_an_error(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("asyncio")
    logger.addFilter(no_interruption)

    async def stopped() -> None:
        raise error

    async def waits() -> None:
        asyncio.ensure_future(stopped())  # noqa: RUF006  (nobody is to hold it)
        await asyncio.sleep(0.01)

    def interrupted() -> None:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(waits())
        except KeyboardInterrupt:
            assert isinstance(error, KeyboardInterrupt)
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.close()
            gc.collect()

    thread = threading.Thread(target=interrupted)  # the tests in a browser leave a loop running in the main thread
    thread.start()
    thread.join()
    logger.removeFilter(no_interruption)
    never = [record for record in caplog.records if "exception was never retrieved" in record.message]
    assert len(never) == (1 if isinstance(error, ValueError) else 0)
