"""A running `qlab lab` on a copy of this repository, for tests in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from qlab import DATA, ROOT
from qlab.workbook.reader.about import NOTEBOOKS
from tests.browser.lesson import exercises_lesson, small_lesson
from tests.browsing import Visit

OWN = {"08_small": small_lesson, "09_exercises": exercises_lesson}  # lessons beside qlab's
SMALL, EXERCISES = OWN
STARTS, RUNS, STOPS = 300, 300, 120  # seconds on a very busy machine: of a server, of a small lesson's cells, of the server's end


@dataclass
class Lab:
    """A running `qlab lab`: its folder, its address without the token, and the token's part."""

    folder: Path
    home: str
    token: str

    def qlab(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command in this copy of the repository."""
        command = [sys.executable, "-m", "qlab", *words]
        return subprocess.run(command, cwd=self.folder, env=environment(self.folder), capture_output=True, text=True, timeout=STARTS)

    def tracked(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.folder / "notebooks").glob("*.ipynb")}


def environment(folder: Path) -> dict[str, str]:
    """For processes whose qlab is the copy in `folder`, with settings of Jupyter's own there."""
    own = {name: str(folder / "jupyter" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    return os.environ | own | {"PYTHONPATH": str(folder)}


@contextmanager
def running_lab(folder: Path) -> Iterator[Lab]:
    """`qlab lab` in the new folder, which becomes a copy of the repository, with two small lessons more."""
    shutil.copytree(ROOT / "qlab", folder / "qlab", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(NOTEBOOKS, folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for name, lesson in OWN.items():
        nbformat.write(lesson(), folder / "notebooks" / f"{name}.ipynb")
    (folder / "data").symlink_to(DATA)
    log = folder / "log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "qlab", "lab", "--no-browser", "--port", "8950"]
        server = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=file, stderr=subprocess.STDOUT)
    try:
        yield Lab(folder, *address(log, server))
    finally:
        server.terminate()
        server.wait(timeout=STOPS)


def address(log: Path, server: subprocess.Popen[bytes]) -> tuple[str, str]:
    """What the server printed, as soon as it has."""
    for _ in range(STARTS * 5):
        if found := re.search(r"(http://127\.0\.0\.1:\d+)/\S*(\?token=\w+)", log.read_text()):
            return found[1], found[2]
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def open_notebook(tab: Visit, lab: Lab, lesson: str) -> None:
    """Open a lesson's copy in JupyterLab, with its kernel ready."""
    tab.page.goto(f"{lab.home}/lab/tree/workspace/{lesson}.ipynb?reset")
    tab.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=STARTS * 1000)
    tab.page.get_by_text("(ipykernel) | Idle").wait_for(timeout=STARTS * 1000)
    tab.page.wait_for_timeout(1000)  # the indicators say so a moment before a cell is taken


def run_all(tab: Visit) -> None:
    tab.page.get_by_role("menuitem", name="Run", exact=True).click()
    tab.page.get_by_text("Run All Cells", exact=True).first.click()
    tab.page.wait_for_selector(".jp-OutputArea-output:has-text('Right.')", timeout=RUNS * 1000)


def scroll_until(page: Any, holds: Callable[[], bool]) -> None:
    """Scroll down, and from the top again, until something holds: JupyterLab makes the cells below as one comes to them."""
    page.locator(".jp-Notebook .jp-Cell").first.hover()
    ends = time.monotonic() + STARTS
    while not holds():
        assert time.monotonic() < ends, "the cells below never came"
        at_the_end = page.locator(".jp-WindowedPanel-outer").first.evaluate(
            "box => box.scrollTop + box.clientHeight >= box.scrollHeight - 1"
        )
        page.mouse.wheel(0, -100_000 if at_the_end else 400)
        page.wait_for_timeout(50)
