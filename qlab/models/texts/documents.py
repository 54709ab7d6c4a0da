"""One text by its name: one of the texts that every machine has, a file of plain text, or one of JSON lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qlab.models.texts.builtin import calibration_docstrings, fingerprint, python_reference, shuffled
from qlab.models.texts.conversations import KEYS, Document, document_of
from qlab.models.texts.jsonl import json_lines, json_object, read_utf8
from qlab.models.texts.prompts import PROMPTS
from qlab.support.errors import UserError

BUILT_IN = ("docstrings", "python-reference", "prompts")
ENDINGS = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Text:
    """A text as it was found: its `name` (of a file the last part), a hash of what it holds, how many lines hold no text."""

    name: str
    sha256: str
    documents: list[Document]
    empty: int = 0
    lines: bool = False  # whether it is of JSON lines, a document each

    @property
    def plain(self) -> str:
        """All documents as plain text, blank lines between."""
        return "\n\n".join(document.text for document in self.documents)


def names_text(source: str) -> bool:
    """Whether `source` is one of BUILT_IN or a file's path."""
    return source in BUILT_IN or is_file(source)


def is_file(source: str) -> bool:
    """Whether there is a file of that path; what cannot be a path is none."""
    try:
        return Path(source).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL, an unknown home
        return False


def open_text(source: str) -> Text:
    """Read the text that `source` names.

    Documents of JSON lines come in an order that is always the same and mixes them: the first of them are a sample of the file,
    which is often sorted by subject.

    Raises:
        UserError: no such name or file; it is empty or not UTF-8; a line of JSON is not as qlab.models.texts.conversations describes.
    """
    if source in ("docstrings", "python-reference"):
        text = calibration_docstrings() if source == "docstrings" else python_reference()
        return Text(source, fingerprint(text), [Document(source, text)])
    if source != "prompts" and not is_file(source):
        raise UserError(
            f"no text {source!r}: expected 'docstrings', 'python-reference', 'prompts' or the path of a file of UTF-8 text or JSON lines"
        )
    path = PROMPTS if source == "prompts" else Path(source).expanduser()
    name, text = (source if source == "prompts" else path.name), read_utf8(path)
    if not text.strip():
        raise UserError(f"{name} is empty")
    if path.suffix.lower() not in ENDINGS and not looks_like_json_lines(text):
        return Text(name, fingerprint(text), [Document(name, text)])
    documents = [document_of(record, where) for where, record in json_lines(text, name)]
    filled = [document for document in documents if document.text.strip()]
    if not filled:
        raise UserError(f"{name} is empty: no line of it holds text")
    return Text(name, fingerprint(text), shuffled(filled), len(documents) - len(filled), lines=True)


def looks_like_json_lines(text: str) -> bool:
    """Whether the first two lines (or the only one) are JSON objects with one of KEYS: a text that merely begins with a brace is none."""
    lines = []
    for line in text.split("\n", 64)[:64]:
        lines += [line] if line.strip() else []
    return bool(lines) and all(_is_record(line) for line in lines[:2])


def _is_record(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return not set(KEYS).isdisjoint(json_object(line, ""))
    except UserError:
        return False
