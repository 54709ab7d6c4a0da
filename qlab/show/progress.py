"""The runner's progress on a terminal: a bar a lesson, cells done, and the time left; elsewhere in lines."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qlab.workbook.language.spoken import say

SILENCE = 60.0  # seconds at least between two lines of a lesson that computes


class LessonProgress:
    """Bars for the named lessons while the context lasts; without a terminal, lines: when a cell has ended, at most one a minute, and how
    long the lesson took."""

    def __init__(self, lessons: list[str], console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._begun = self._said = clock()  # of the lesson that computes, and when a line was printed last
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("cells"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks = {lesson: self._bars.add_task(lesson, start=False, total=None) for lesson in lessons}
        self._finished: set[str] = set()

    def __enter__(self) -> LessonProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, lesson: str, done: int, total: int, state: str = "") -> None:
        """`done` of `total` cells of a lesson are finished; a `state` says that it has ended, and how."""
        task = self._tasks[lesson]
        self._bars.start_task(task)
        self._bars.update(task, completed=done, total=total)
        if not self._console.is_terminal and lesson not in self._finished:
            self._tell(lesson, done, total, state)
        if state:
            self._finished.add(lesson)

    def _tell(self, lesson: str, done: int, total: int, state: str) -> None:
        now = self._clock()
        if state:
            told = {"lesson": lesson, "state": state, "seconds": now - self._begun, "number": len(self._finished) + 1}
            self._console.print(
                say("{lesson}: {state}, {seconds:.0f} s ({number}/{count})", count=len(self._tasks), **told), highlight=False
            )
            self._begun = self._said = now
        elif now - self._said >= SILENCE:
            told = {"lesson": lesson, "done": done, "total": total, "seconds": now - self._begun}
            self._console.print(say("{lesson}: {done} of {total} cells, {seconds:.0f} s", **told), highlight=False)
            self._said = now
