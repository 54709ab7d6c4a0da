"""Recorded results: what a lesson measured, kept in its notebook so that the runner, the report and the tests can read it.

A record is an output of a private MIME type beside what the cell shows, so it survives papermill, Run All and saving.
"""

from __future__ import annotations

from typing import Any

MIME = "application/vnd.qlab.workbook.record+json"
_recorded: dict[str, Any] = {}


def record(name: str, value: Any) -> None:
    """Keep `value` (plain JSON data) as the result `name` of this lesson.

    Raises:
        TypeError, ValueError: the value is not JSON data (NaN and infinity are not).
    """
    import json

    from IPython.display import display

    _recorded[name] = json.loads(json.dumps(value, allow_nan=False))
    display({MIME: {name: _recorded[name]}}, raw=True)


def recorded() -> dict[str, Any]:
    """Everything recorded so far in this process."""
    return dict(_recorded)


def records_of(notebook: dict[str, Any]) -> dict[str, Any]:
    """All records in an executed notebook (nbformat 4 JSON), the later of equal names counting."""
    found: dict[str, Any] = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            found.update(output.get("data", {}).get(MIME, {}))
    return found
