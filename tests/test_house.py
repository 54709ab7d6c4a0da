"""The house: rooms in one column, each importing only from rooms below it and from itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from qlab import ROOT

# From the top to the bottom. Rooms on one line do not know each other.
COLUMN = [
    ["__main__"],
    ["cli"],
    ["show"],
    ["sweep"],
    ["workbook"],
    ["release", "claims"],
    ["evaluate", "doctor"],
    ["artifacts"],
    ["peers"],
    ["recipes"],
    ["serve", "walk"],
    ["plan"],
    ["models"],
    ["formats"],
    ["methods"],
    ["support"],
]
LEVEL = {room: level for level, rooms in enumerate(reversed(COLUMN)) for room in rooms}
FILES_OF_A_ROOM = 13  # with its __init__.py


def room_of(module: str) -> str:
    """The room of a dotted name below qlab; empty for qlab itself."""
    return module.split(".")[1] if "." in module else ""


def imported(source: str) -> set[str]:
    """Dotted names below qlab that a module's text imports, at its top or within a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "qlab":
            found |= {f"qlab.{alias.name}" for alias in node.names if alias.name.islower() and not alias.name.startswith("_")}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.startswith("qlab.")}


def wrong_ways(file: Path, source: str) -> list[str]:
    """Imports of the module `file` that lead to its own level in another room, or upwards."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    if parts == ("qlab", "__init__"):
        return sorted(imported(source))
    here = parts[1]
    return [name for name in sorted(imported(source)) if (there := room_of(name)) != here and LEVEL[there] >= LEVEL[here]]


FILES = sorted((ROOT / "qlab").rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_lead_downwards(file: Path) -> None:
    assert wrong_ways(file, file.read_text()) == []


def test_an_import_turned_round_is_seen() -> None:
    file = ROOT / "qlab" / "methods" / "rtn.py"
    assert wrong_ways(file, "def f():\n    from qlab.models.opening import locate") == ["qlab.models.opening"]
    assert wrong_ways(ROOT / "qlab" / "serve" / "proof.py", "import qlab.walk.walk") == ["qlab.walk.walk"]
    assert wrong_ways(ROOT / "qlab" / "plan" / "plan.py", "from qlab import DATA\nfrom qlab.models.opening import locate") == []


def test_rooms_are_small() -> None:
    rooms = [folder for folder in (ROOT / "qlab").rglob("*") if folder.is_dir() and folder.name != "__pycache__"]
    assert {folder.name: count for folder in rooms if (count := len(list(folder.glob("*.py")))) > FILES_OF_A_ROOM} == {}
