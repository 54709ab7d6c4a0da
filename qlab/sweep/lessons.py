"""Lessons as jobs of a sweep: each is `qlab run` in a process of its own, with a report of its own; artifacts are made once for all."""

from __future__ import annotations

from pathlib import Path

from qlab.sweep.jobs import LESSONS, Job, Subject
from qlab.sweep.plan import Sweep, as_typed
from qlab.workbook.language.spoken import spoken

KIND = "lesson"


def lesson_jobs(sweep: Sweep, models: dict[str, Subject], out: Path) -> list[Job]:
    """The lessons of a sweep on each of its models, whose reports lie below the folder `out`, each after those that it needs.

    Raises:
        UserError: a parameter that cannot be used with a model.
    """
    return [job for called, subject in models.items() for job in jobs_on(sweep, called, subject, out)] if sweep.lessons else []


def jobs_on(sweep: Sweep, called: str, subject: Subject, out: Path) -> list[Job]:
    """The lessons on one model, in their order."""
    from qlab.workbook.batch.costs import cost_of
    from qlab.workbook.batch.runner import NEEDS, lesson_key, prepare  # here: papermill takes long to import

    found = dict[str, Job]()
    for lesson, given in sorted(sweep.lessons.items()):
        chosen = {"device": sweep.device} | {name: as_typed(value) for name, value in given.items()}
        values = prepare([lesson], subject.word, chosen)[lesson]
        folder = out / LESSONS / called / lesson
        words = ["run", lesson, "--model", subject.word, "--out", str(folder), "--language", spoken(), "--json", "--wait"]
        words += [word for name in chosen for word in ("-p", f"{name}={as_typed(values[name])}")]  # files by their whole paths
        needs = tuple(found[need].key for need in NEEDS.get(lesson, ()) if need in found)
        place = str(folder / f"{lesson}.html")
        taken = cost_of(lesson, subject.source, values)
        key = lesson_key(lesson, values)
        found[lesson] = Job(KIND, called, lesson, tuple(words), key, needs, taken.memory, taken.seconds, place)
    return list(found.values())
