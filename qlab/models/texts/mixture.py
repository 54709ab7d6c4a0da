"""Several texts with weights, as people type them: `fr.jsonl:2`, `prompts:2,code.txt:1`, and plain names and paths with weight 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from qlab.models.texts.documents import BUILT_IN, is_file, names_text, open_text
from qlab.support.errors import UserError

MANY = 200  # texts, and commas within their paths


@dataclass(frozen=True)
class Part:
    """A text of a mixture by its name or path, and its weight: its share of the windows."""

    source: str
    weight: float = 1.0

    @property
    def label(self) -> str:
        """What it is called in a table: no folder of this machine, and no weight of 1."""
        name = self.source if self.source in BUILT_IN else Path(self.source).name
        return name if self.weight == 1 else f"{name}:{self.weight:g}"


def mixture(texts: str | Sequence[str]) -> list[Part]:
    """The parts that `texts` names; each may hold several with commas between. Names and paths that are there go before any reading of
    their colons and commas.

    Raises:
        UserError: nothing is named, a text twice, or a weight is no positive number.
    """
    found = [part_of(word) for text in ([texts] if isinstance(texts, str) else texts) for word in split(text)]
    if not found:
        raise UserError("no text is named: expected 'docstrings', 'python-reference', 'prompts' or files")
    sources = [part.source for part in found]
    if twice := [source for source in sources if sources.count(source) > 1]:
        raise UserError(f"the text {twice[0]!r} is named twice; give it a weight instead, such as {Part(twice[0], 2).label}")
    return found


def split(text: str) -> list[str]:
    """The names in `text`, with commas between; a comma within the path of a file that is there belongs to the path.

    Raises:
        UserError: they are more than MANY.
    """
    words, found = text.split(","), []
    if len(words) > MANY:
        raise UserError(f"{len(words):,} texts with commas between: expected {MANY} at most; write them into one file")
    while words:
        for end in range(len(words), 0, -1):
            name = ",".join(words[:end]).strip()
            source, _, weight = name.rpartition(":")
            if end == 1 or names_text(name) or (names_text(source) and "," not in weight):
                found.append(name)
                words = words[end:]
                break
    return [name for name in found if name]


def part_of(word: str) -> Part:
    """A name, or a name, a colon and a weight.

    Raises:
        UserError: the weight is no positive number.
    """
    source, colon, weight = word.rpartition(":")
    if names_text(word) or not colon or not (names_text(source) or is_number(weight)):
        return Part(word)
    value = float(weight) if is_number(weight) else math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{word!r}: the weight of a text is a positive number, such as {source}:2, not {weight!r}")
    return Part(source, value)


def is_number(text: str) -> bool:
    """Whether Python reads `text` as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def shares(parts: Sequence[Part], count: int) -> list[int]:
    """`count` windows shared by weight; what whole windows leave over goes to the largest remainders, at a tie to the earlier text.

    Raises:
        UserError: a text would get none.
    """
    weights = [Fraction(part.weight) for part in parts]
    exact = [count * weight / sum(weights) for weight in weights]
    found = [math.floor(share) for share in exact]
    order = sorted(range(len(parts)), key=lambda place: found[place] - exact[place])
    for place in order[: count - sum(found)]:
        found[place] += 1
    if 0 in found:
        raise UserError(f"of {count} windows none is left for {parts[found.index(0)].label}: ask for more windows, or give it more weight")
    return found


def check_texts(texts: str | Sequence[str]) -> None:
    """See that `texts` can be read, without the work of reading packages.

    Raises:
        UserError: as mixture and open_text.
    """
    for part in mixture(texts):
        if part.source not in BUILT_IN:
            open_text(part.source)


def load_text(texts: str | Sequence[str]) -> str:
    """All documents of `texts` as plain text, in full whatever their weights.

    Raises:
        UserError: as mixture and open_text.
    """
    return "\n\n".join(open_text(part.source).plain for part in mixture(texts))


def files_of(texts: str | Sequence[str]) -> list[Path]:
    """The files among `texts`."""
    return [Path(part.source).expanduser() for part in mixture(texts) if part.source not in BUILT_IN and is_file(part.source)]


def label_of(texts: str | Sequence[str]) -> str:
    """What `texts` are called in a table."""
    return ",".join(part.label for part in mixture(texts))


def absolute(texts: str) -> str:
    """`texts` for a process that runs in another folder: every file by its whole path."""
    found = []
    for part in mixture(texts):
        source = str(Path(part.source).expanduser().resolve()) if part.source not in BUILT_IN and is_file(part.source) else part.source
        found.append(source if part.weight == 1 else f"{source}:{part.weight!r}")
    return ",".join(found)
