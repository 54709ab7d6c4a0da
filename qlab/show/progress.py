"""The runner's progress on a terminal: a bar a lesson, cells done, and the time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class LessonProgress:
    """Bars for the named lessons while the context lasts; without a terminal, a line a finished lesson."""

    def __init__(self, lessons: list[str], console: Console) -> None:
        self._console = console
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
        if state and lesson not in self._finished:
            self._finished.add(lesson)
            if not self._console.is_terminal:
                self._console.print(f"{lesson}: {state} ({len(self._finished)}/{len(self._tasks)})", highlight=False)
