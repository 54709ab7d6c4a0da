"""What kernels print stays away from the terminal, and is told where they die."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from nbclient.exceptions import CellExecutionError, DeadKernelError

from qlab.workbook.batch.kernels import no_interruption
from qlab.workbook.batch.runner import FAILED, run_lessons
from tests.workbook.batch.test_runner import lessons  # noqa: F401  (a fixture)


def test_a_kernel_that_does_not_start_is_told_with_what_it_printed(
    lessons: dict[str, dict[str, Any]],  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    (found,) = run_lessons({"01_fine": lessons["01_fine"]}, tmp_path / "out", False, lambda *_: None)
    assert found.state == FAILED
    assert "Its kernel printed last: " in found.error
    assert "ModuleNotFoundError" in found.error
    assert "ModuleNotFoundError" not in "".join(capfd.readouterr())


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
