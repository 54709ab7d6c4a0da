"""What a lesson's process holds at its peak, beside what `qlab run` predicts, on the embedded model and on a made-up one of 320 MB.

`make bench-lessons`. Lessons run as always, each in a kernel of its own, whose peak the system tells (Linux). Nothing here is a test.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from qlab.cli.lessons import chosen_lessons
from qlab.models.opening import locate
from qlab.workbook.batch.budget import lesson_budget
from qlab.workbook.batch.runner import prepare, run_lessons
from tests.bench.made_up import make_checkpoint

SHAPE = {"layers": 10, "hidden": 1024, "mlp": 4096, "heads": 16, "kv_heads": 8}
SHORT = {"calibration_windows": "4", "calibration_length": "128", "evaluation_windows": "3", "evaluation_length": "256"}
QUICK = {"tuning_steps": "2", "training_steps": "2", "answer_tokens": "8", "generated_tokens": "4"}  # which do not change a peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["embedded", "made-up"], default=["embedded", "made-up"])
    parser.add_argument("--lessons", nargs="+", default=["01", "02", "03", "04", "05"])
    o = parser.parse_args()
    names = chosen_lessons(o.lessons)
    with tempfile.TemporaryDirectory() as place:
        for model in o.models:
            subject = model if model == "embedded" else str(make_checkpoint(Path(place) / "made-up", **SHAPE))
            for lesson in names:
                report(lesson, subject, model, SHORT | QUICK if model == "made-up" else QUICK, Path(place))


def report(lesson: str, subject: str, called: str, wanted: dict[str, str], place: Path) -> None:
    """Run one lesson and print a line."""
    known = prepare([lesson], subject, {})[lesson]
    given = {name: value for name, value in wanted.items() if name in known} | {"work": str(place / "artifacts"), "device": "cpu"}
    values = prepare([lesson], subject, given)
    expected = lesson_budget(lesson, locate(subject), values[lesson]).total
    (outcome,) = run_lessons(values, place / f"report-{called}", True, lambda *_: None)
    ratio = f"{outcome.peak_bytes / expected:.2f} of it" if outcome.peak_bytes else "a peak that this system does not tell"
    said = f"{outcome.state}{f' in cell {outcome.cell}: {outcome.error}' if outcome.error else ''}, {outcome.seconds:.0f} s"
    print(f"{called} {lesson}: predicted {expected / 1e6:.0f} MB, held {outcome.peak_bytes / 1e6:.0f} MB, {ratio} ({said})", flush=True)


if __name__ == "__main__":
    main()
