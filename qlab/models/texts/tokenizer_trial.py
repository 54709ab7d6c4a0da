"""A tokenizer.json tried in a process of its own before it is opened: a few of its bytes can ask for any memory and time."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from qlab.models.texts.prompts import PROMPTS
from qlab.support.errors import UserError
from qlab.support.processes.confined import Exceeded, confined

SECONDS = 15  # of computing to open the largest and to cut the text of the trial, which take two
TEXT = 16_000  # characters of the workbook's prompts that are cut
MOST = 16  # tokens that a byte of text may become; a byte is one where a tokenizer knows no longer ones


def check_bounded(file: Path) -> None:
    """See that the tokenizer in `file` can be opened and cuts a text of English, French and code in bounds. Whether it is damaged is
    another question, which whoever opens it answers.

    Raises:
        UserError: it takes too much memory or time, or makes too many tokens.
    """
    if said := _tried(file, hashlib.sha256(file.read_bytes()).hexdigest()):
        raise UserError(f"{file.parent.name}/{file.name} {said}; expected a tokenizer that cuts a text: copy the original's again")


@lru_cache(maxsize=64)
def _tried(file: Path, content: str) -> str:
    """What is wrong with the tokenizer that `file` with this content holds; empty where nothing is."""
    try:
        tokens, size = confined(cut_here, file, seconds=SECONDS)
    except Exceeded as error:
        return f"{error} for a text of {TEXT:,} characters"
    return f"makes {tokens:,} tokens of a text of {size:,} bytes" if tokens > MOST * size else ""


def cut_here(file: Path) -> tuple[int, int]:
    """Tokens of the beginning of the workbook's prompts, and its bytes; none where the file holds no tokenizer that opens."""
    from tokenizers import Tokenizer

    text = PROMPTS.read_text(encoding="utf-8")[:TEXT]
    try:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokens = max(len(tokenizer.encode(text, add_special_tokens=special).ids) for special in (False, True))
    except MemoryError:
        raise
    except BaseException:  # the library panics by one that is no Exception
        return 0, 1
    return tokens, len(text.encode())
