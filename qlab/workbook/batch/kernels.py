"""papermill's engine as the runner uses it: kernels in a private folder, watched, and silent on the terminal."""

from __future__ import annotations

import atexit
import logging
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

from qlab.support.disk.scratch import Scratch, sweep
from qlab.support.processes.process import peak_bytes
from qlab.support.processes.starting import end_copies
from qlab.workbook.batch.copied import CopiedKernel

LONGEST = 70  # characters of a folder for kernels' sockets; they are named by 33 more, and 107 are allowed
LEAVING = 3.0  # seconds that a kernel has to end, and what it has started after it
LAST = 5  # lines of what a kernel printed that are shown where it died

Watcher = Callable[..., None]
"""Told of progress: lesson, cells done, cells in all; and once, at its end, the state that the lesson came to."""


class LoggedKernel(AsyncKernelManager):
    """A kernel whose process prints to a file: one that Ctrl-C meets while it starts prints a traceback, which is nobody's fault."""

    number: ClassVar[int | None] = None
    """The last one's process."""

    async def start_kernel(self, **arguments: Any) -> None:  # type: ignore[override]  # AsyncKernelManager's own is a coroutine too
        """Start the kernel's process.

        Raises:
            OSError: the file, or a process, cannot be made.
        """
        if self.provisioner is None:
            self.provisioner = CopiedKernel(kernel_id=self.kernel_id or "", kernel_spec=self.kernel_spec, parent=self)
        with kernel_log().open("wb") as log:
            await self._async_start_kernel(**arguments, stdout=log, stderr=log)
        LoggedKernel.number = getattr(self.provisioner, "pid", None)


class WatchedEngine(NBClientEngine):
    """papermill's own engine, telling `watcher` of every finished cell. `peak`: the most bytes that the kernel's process has held by then;
    what it has started, such as a walk, counts for itself."""

    watcher: Watcher = staticmethod(lambda *news: None)
    lesson = ""
    peak = 0

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: Any, **arguments: Any) -> None:
        complete, save, total = nb_man.cell_complete, nb_man.save, len(nb_man.nb.cells)

        def told(cell: Any, cell_index: int | None = None, **rest: Any) -> None:
            complete(cell, cell_index=cell_index, **rest)
            cls.peak = kernel_peak() or cls.peak
            cls.watcher(cls.lesson, (cell_index or 0) + 1, total)

        nb_man.cell_complete, cls.peak = told, 0
        nb_man.save = lambda **_: None  # papermill would write all figures so far before and after each cell; nobody reads them
        # Kernels are spoken to through files in a private folder, not ports: nobody else on the machine can reach them.
        own = f"{private_folder().path}/kernel"
        config = Config({"KernelManager": {"transport": "ipc", "ip": own, "connection_file": f"{own}.json"}})
        config.NotebookClient.kernel_manager_class = LoggedKernel
        # An interrupted kernel logs a traceback of its own message loop; a cell's errors come back by another way.
        quiet = ["--log-level=50"]
        logging.getLogger("asyncio").addFilter(no_interruption)
        try:
            super().execute_managed_notebook(nb_man, kernel_name, config=config, extra_arguments=quiet, **arguments)
        finally:
            nb_man.save = save


@cache
def private_folder() -> Scratch:
    """A folder of this process alone, removed at its end: after the kernels have been stopped, also on Ctrl-C.

    Among the system's temporary files, or in /tmp where the name of their folder is too long for those of sockets in it.
    """
    atexit.register(sweep_after_kernels)  # before any kernel, so that it runs after the last
    usual = Path(tempfile.gettempdir())
    return Scratch(usual if len(str(usual)) <= LONGEST else Path("/tmp"))


def sweep_after_kernels(*places: Path) -> None:
    """End the last kernel, where Ctrl-C came while it was asked to end, and remove the temporary folders that kernels have left, which are
    ended at once, and the processes that they had started: the system's, and those in `places`."""
    end_copies(LEAVING)
    for place in (Path(tempfile.gettempdir()), *places):
        sweep(place)


def kernel_log() -> Path:
    """The file that the present kernel's process prints to."""
    return private_folder().path / "kernel.log"


def kernel_peak() -> int:
    """The most bytes that the kernel's process has held; 0 where it is gone, or the system does not tell."""
    with suppress(OSError):  # it ends just now
        return peak_bytes(LoggedKernel.number) if LoggedKernel.number else 0
    return 0


def last_printed() -> str:
    """The last lines that the kernel's process printed, in one; empty where it printed nothing."""
    log = kernel_log()
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return " | ".join([line.strip() for line in lines if line.strip()][-LAST:])


def no_interruption(record: logging.LogRecord) -> bool:
    """Whether the record is of anything but an interruption: a task that it met keeps it as an exception, or the error of a cell whose
    kernel it met, or ended, and asyncio logs that as one that nobody fetched. A cell's error comes back by another way."""
    return not (record.exc_info and isinstance(record.exc_info[1], (KeyboardInterrupt, CellExecutionError, DeadKernelError)))


papermill_engines.register("qlab", WatchedEngine)
