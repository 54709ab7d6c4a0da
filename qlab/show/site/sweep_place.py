"""Where a sweep may be put: into a folder that is new, empty or a sweep's, and into no model's. A folder with its page is a sweep's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from qlab.artifacts.placing import check_apart
from qlab.show.site.pages import MARK
from qlab.support.errors import UserError
from qlab.sweep.jobs import ARTIFACTS, JOBS, LESSONS, LOGS

PAGE = "index.html"
TITLE = f"Sweep{MARK}"  # of the page, by which it is known
FOLDERS = (ARTIFACTS, JOBS, LESSONS, LOGS)


def check_out(out: Path, models: Iterable[Path], files: Iterable[Path]) -> None:
    """See that a sweep of models in the folders `models` can be put into `out`, before any work. Its own `files`, such as the one that it
    is read from, may lie there; so may anything once the sweep's page does, and what is hidden.

    Raises:
        UserError: `out` lies in a model's folder, cannot be written, or holds what no sweep made.
    """
    for model in models:
        check_apart(out / JOBS, model)
    for folder in (out / name for name in FOLDERS):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is not a folder: move it away, or choose another --out")
    page = out / PAGE
    if os.path.lexists(page):
        if not (page.is_file() and f"<title>{TITLE}</title>" in page.read_text(encoding="utf-8", errors="replace")):
            raise UserError(f"{page} is left alone, since no sweep made it: move it away, or choose another --out")
    elif out.is_dir() and (name := foreign_to(out, files)):
        new = out / "sweep"
        raise UserError(f"{out} holds {name} and no sweep's page, {PAGE}, so it is left alone: choose another --out, such as {new}")


def foreign_to(out: Path, files: Iterable[Path]) -> str:
    """The first name in a folder without a page that is neither a sweep's nor of one of its own `files`; empty where there is none."""
    own = {os.path.realpath(file) for file in files}

    def foreign(entry: Path) -> bool:
        return not (entry.name in FOLDERS or entry.name.startswith(".") or os.path.realpath(entry) in own)

    return next((entry.name for entry in sorted(out.iterdir()) if foreign(entry)), "")
