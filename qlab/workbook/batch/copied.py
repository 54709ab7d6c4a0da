"""Kernels as copies of the process that has imported the libraries: a lesson does not import them again, nor do the processes it starts."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qlab.models.opening import OpenedModel
from qlab.support.processes.process import without_main
from qlab.support.processes.starting import begin, copied_from_one, end, share, starting

LAUNCHER = ["-m", "ipykernel_launcher"]  # of the command that starts Python's kernel
# What lessons import, in their kernels or in the processes that they start.
LESSONS_IMPORT = (
    "IPython.core.debugger", "ipykernel.kernelapp", "qlab.methods.kernels.cpu.trial",
    "qlab.show.prediction", "qlab.show.recap", "qlab.show.tables", "qlab.show.titles.deployment",
    "qlab.workbook.benchmark", "qlab.workbook.crowd.advice", "qlab.workbook.exercises.checks", "qlab.workbook.lesson",
)  # fmt: skip


def imports_of(source: OpenedModel) -> tuple[str, ...]:
    """What lessons on a model import, the code of its architecture included where transformers has it under its usual name."""
    kind = source.config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:  # what refuses such a model says why
        return LESSONS_IMPORT
    return (*LESSONS_IMPORT, CONFIG_MAPPING[kind].__module__.replace(".configuration_", ".modeling_"))


class CopiedKernel(LocalProvisioner):
    """Starts Python's own kernel as a copy where processes can be copied, and any other kernel, or elsewhere, as Jupyter does."""

    async def launch_kernel(self, cmd: list[str], **arguments: Any) -> KernelConnectionInfo:
        """Start the kernel of the command `cmd`. Of `arguments` these count: `env`, `cwd`, and the file `stdout` that it prints to.

        Raises:
            OSError: no process or no temporary folder can be made.
            RuntimeError: the process that it should be a copy of has ended.
        """
        ours = cmd[0] == sys.executable and cmd[1:3] == LAUNCHER
        if not ours or not copied_from_one(context := starting()):
            return await super().launch_kernel(cmd, **arguments)
        folder = os.fspath(arguments.get("cwd") or Path.cwd())
        told = (cmd[3:], dict(arguments.get("env") or os.environ), folder, arguments["stdout"].name)
        process = context.Process(target=run_kernel, args=told, daemon=True)
        try:
            with without_main():
                process.start()
        except EOFError as error:  # the process that it should be a copy of was killed
            raise RuntimeError("the process that the kernel should be a copy of has ended") from error
        self.process = Started(process)  # type: ignore[assignment]
        self.pid = self.pgid = process.pid  # it leads a group of its own
        return self.connection_info


class Started:
    """A process of multiprocessing, as Jupyter asks for one of subprocess."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        """Its exit code, -N where signal N ended it; None where it runs."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """Its exit code once it has ended."""
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.pid is not None and self._process.is_alive():
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_kernel(arguments: list[str], variables: Mapping[str, str], folder: str, log: str) -> None:
    """Be a kernel, in a session of its own, until it is told to end or whoever started it is gone."""
    os.setsid()
    begin(variables, log)
    os.chdir(folder)
    share()
    sys.argv = ["ipykernel_launcher", *arguments]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance(argv=arguments)
    end()
