"""Texts: where calibration, evaluation and training text comes from, and how it becomes windows of tokens.

Two texts are on every machine that has the environment, so nothing need be downloaded:

- ``docstrings``: the documentation inside the Python packages installed here (English technical prose);
- ``python-reference``: the Python language reference, which CPython ships as ``pydoc_data.topics``.

Any other name is a path to a UTF-8 text file.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from qlab import DATA
from qlab.support.errors import UserError

# Enough prose for any calibration in this workbook, pinned in the lock, parsed in a few seconds.
CALIBRATION_PACKAGES = ("numpy", "seaborn")
MINIMUM_DOCSTRING = 160  # characters; shorter ones are labels, not prose


class Tokenizer(Protocol):
    """The one call that this module makes of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...


def check_text(source: str) -> None:
    """See that `source` names a text, without the work of reading packages.

    Raises:
        UserError: as load_text.
    """
    if source not in ("docstrings", "python-reference"):
        load_text(source)


def load_text(source: str) -> str:
    """Return the text that `source` names: ``docstrings``, ``python-reference`` or a UTF-8 file.

    Raises:
        UserError: no such name or file, or the file is empty or not UTF-8.
    """
    if source == "docstrings":
        return "\n\n".join(shuffled(deduplicated(docstrings(CALIBRATION_PACKAGES))))
    if source == "python-reference":
        return python_reference()
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"no text {source!r}: expected 'docstrings', 'python-reference' or the path of a UTF-8 file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text ({error}); convert it first") from error
    if not text.strip():
        raise UserError(f"{source} is empty")
    return text


def windows(text: str, tokenizer: Tokenizer, length: int, count: int) -> Tensor:
    """Cut `text` into up to `count` consecutive, non-overlapping windows: int64 [windows, length].

    Special tokens are not added: windows run through the text as the usual perplexity protocol has it.

    Raises:
        UserError: the text holds less than one window.
    """
    # 12 characters a token is beyond any tokenizer on prose: a cheap bound that spares tokenizing megabytes.
    # Cut at a blank, since a word cut in two changes its tokens.
    clipped = text[: 12 * length * count].rsplit(" ", 1)[0] if len(text) > 12 * length * count else text
    tokens = tokenizer.encode(clipped, add_special_tokens=False)
    found = min(count, len(tokens) // length)
    if found == 0:
        raise UserError(f"the text has {len(tokens)} tokens, less than one window of {length}; give a longer text or a shorter window")
    return torch.tensor(tokens[: found * length], dtype=torch.int64).view(found, length)


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
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    text = ast.get_docstring(node, clean=False)
                    if text and len(cleaned := inspect.cleandoc(text)) >= MINIMUM_DOCSTRING:
                        yield cleaned


def deduplicated(texts: Iterable[str], without: str = "") -> Iterator[str]:
    """Drop each text of which half or more, by paragraphs, was seen in an earlier text or stands in `without`."""
    seen = {" ".join(paragraph.split()) for paragraph in without.split("\n\n")}
    for text in texts:
        paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        known = sum(len(paragraph) for paragraph in paragraphs if paragraph in seen)
        if 2 * known < sum(map(len, paragraphs)):
            seen.update(paragraphs)
            yield text


def shuffled(texts: Iterable[str], seed: int = 0) -> list[str]:
    """The texts in an order that depends only on `seed`, so that a prefix samples every package."""
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


def load_prompts(file: Path | None = None) -> list[dict[str, str]]:
    """Prompts of a JSONL file, each an object with `prompt`; without a file the workbook's own, which have `id`, `language` and `kind` too.

    Raises:
        UserError: the file cannot be read, or a line is no such object.
    """
    path = file or DATA / "prompts.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the prompts in {path.name}: {error.__class__.__name__}; expected a UTF-8 file of JSON lines"
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found.append(entry | {"prompt": str(entry["prompt"])})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path.name}, line {number}: expected a JSON object with a 'prompt'") from error
    return found
