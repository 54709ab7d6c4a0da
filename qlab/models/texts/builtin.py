"""Two texts that are on every machine that has the environment, so nothing need be downloaded.

- ``docstrings``: the documentation inside the Python packages installed here (English technical prose);
- ``python-reference``: the Python language reference, which CPython ships as ``pydoc_data.topics``.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from qlab import ROOT
from qlab.support.disk.whole import write_whole
from qlab.support.errors import UserError
from qlab.support.versions import version_of

# Enough prose for any calibration in this workbook, pinned in the lock, parsed in a few seconds.
CALIBRATION_PACKAGES = ("numpy", "seaborn")
MINIMUM_DOCSTRING = 160  # characters; shorter ones are labels, not prose
KEPT = ROOT / "build" / "texts"
Item = TypeVar("Item")


@cache
def calibration_docstrings() -> str:
    """The text ``docstrings``: those of CALIBRATION_PACKAGES without repetitions, in an order that mixes the packages.

    Parsing the packages takes seconds, in each process that reads the text: the first keeps it, in KEPT, for others of the same versions
    of Python, of the packages and of this file. Whoever has changed a package in place removes the folder.
    """
    versions = (sys.version, *map(version_of, CALIBRATION_PACKAGES), Path(__file__).read_text())
    place = KEPT / f"docstrings-{fingerprint(repr(versions))}.txt"
    if (kept := whole_text(place)) is not None:
        return kept
    text = "\n\n".join(shuffled(deduplicated(docstrings(CALIBRATION_PACKAGES))))
    with suppress(OSError):  # a full disk, or one that is not writable: it is parsed again
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, f"{fingerprint(text)}\n{text}")
    return text


def whole_text(place: Path) -> str | None:
    """The text in a file after a first line that is its fingerprint; None where there is no such file, or another text."""
    with suppress(OSError, UnicodeDecodeError):
        said, _, text = place.read_bytes().decode().partition("\n")
        return text if fingerprint(text) == said else None
    return None


def fingerprint(text: str) -> str:
    """A short hash of a text, for manifests and results."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def python_reference() -> str:
    """The Python language reference as CPython ships it, topics in alphabetical order."""
    from pydoc_data import topics

    return "\n\n".join(topics.topics[name].strip() for name in sorted(topics.topics))


def docstrings(packages: Iterable[str]) -> Iterator[str]:
    """Every docstring of the named installed packages, cleaned of indentation, in file order.

    Files are read and parsed, never imported.

    Raises:
        UserError: a package is not installed.
    """
    for package in packages:
        for path in _python_files(package):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # templates and Python 2 fixtures that packages carry
                continue
            for node in statements(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    text = ast.get_docstring(node, clean=False)
                    if text and len(cleaned := inspect.cleandoc(text)) >= MINIMUM_DOCSTRING:
                        yield cleaned


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and its statements, in the order of `ast.walk`; their expressions, of which most of a tree consists, are left out."""
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        waiting.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case))


def deduplicated(texts: Iterable[str], without: str = "") -> Iterator[str]:
    """Drop each text of which half or more, by paragraphs, was seen in an earlier text or stands in `without`."""
    seen = {" ".join(paragraph.split()) for paragraph in without.split("\n\n")}
    for text in texts:
        paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        known = sum(len(paragraph) for paragraph in paragraphs if paragraph in seen)
        if 2 * known < sum(map(len, paragraphs)):
            seen.update(paragraphs)
            yield text


def shuffled(texts: Iterable[Item], seed: int = 0) -> list[Item]:
    """The texts in an order that depends only on `seed`, so that the first of them are a sample of all."""
    listed = list(texts)
    random.Random(seed).shuffle(listed)
    return listed


def _python_files(package: str) -> list[Path]:
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package!r} is not installed; run 'make environment'")
    root = Path(next(iter(spec.submodule_search_locations)))
    return sorted(path for path in root.rglob("*.py") if not {"test", "tests", "_vendor"} & set(path.relative_to(root).parts))
