"""Windows of tokens cut from texts: what calibration, evaluation and training read.

A window holds consecutive tokens, and windows do not overlap. Documents are joined, with the tokenizer's end of text between them; what
went through a chat template brings its own marks. Where the tokenizer begins every text with BOS, so does every window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from qlab.models.texts.conversations import Tokenizer, has_template, rendered
from qlab.models.texts.documents import Text, open_text
from qlab.models.texts.mixture import label_of, mixture, shares
from qlab.models.texts.tokens import beginning, check_tokens, end_of_text, shown
from qlab.support.errors import UserError
from qlab.support.wording import Sentence, joined, plural

KINDS = TEMPLATED, UNTEMPLATED, LINES, PLAIN = (
    "conversations by the chat template", "conversations as plain text, since the tokenizer has no chat template", "JSON lines",
    "plain text",
)  # fmt: skip
CHARACTERS_A_TOKEN = 12  # more than tokenizers take on prose: a cheap bound that spares tokenizing megabytes


@dataclass(frozen=True)
class Read:
    """What was read of one text. Of `documents`, `used` were made `tokens`, which filled `windows` of the `asked`; `unused` tokens were
    left when no more windows were wanted or filled, and `empty` lines held no text. `joined` are the tokens between documents."""

    name: str
    kind: str
    sha256: str
    documents: int
    used: int
    empty: int
    tokens: int
    asked: int
    windows: int
    unused: int
    joined: str = ""

    def __str__(self) -> str:
        return self.said()

    def said(self) -> Sentence:
        """What was read, in one sentence."""
        if self.used < self.documents:
            counted = Sentence("{used:,} of {documents:,} documents read", used=self.used, documents=self.documents)
        else:
            counted = plural(self.documents, "1 document read", "{count:,} documents read")
        windows = plural(self.windows, "1 window used", "{count:,} windows used")
        tokens = plural(self.tokens, "1 token", "{count:,} tokens")
        read = joined(", ", [self.kind, counted, tokens, windows])
        words = [Sentence("{name}: {said}", name=self.name, said=read)]
        if self.joined and self.used > 1:
            words.append(Sentence("{mark} between documents", mark=self.joined))
        if self.used < self.documents:
            words.append(Sentence("the other documents were not needed"))
        if self.windows < self.asked:
            words.append(Sentence("fewer than the {asked:,} windows asked for, since the text is shorter", asked=self.asked))
            if self.unused:
                one, several = "its last token fills no window and is dropped", "its last {count:,} tokens fill no window and are dropped"
                words.append(plural(self.unused, one, several))
        if self.empty:
            words.append(plural(self.empty, "1 document without text dropped", "{count:,} documents without text dropped"))
        return joined("; ", words)


@dataclass(frozen=True)
class Reading:
    """`windows`, int64 [windows, length], what was `read` for them, what the texts are called (`label`), and what each window begins
    with by the tokenizer's rule (`start`, empty where that is nothing)."""

    windows: Tensor
    read: list[Read]
    label: str
    start: str

    @property
    def conditions(self) -> dict[str, str]:
        """What was read, for figures measured on it: two texts of one name differ in their hashes."""
        hashes = ",".join(one.sha256[:8] for one in self.read)
        return {"text": self.label, "sha256": hashes} | ({"start": self.start} if self.start else {})

    @property
    def protocol(self) -> Sentence:
        """How the windows were cut, in a sentence."""
        begins = Sentence("no BOS, as the tokenizer adds none")
        if self.start:
            begins = Sentence("each begins with {start}, as the tokenizer begins a text", start=self.start)
        cut = Sentence("windows of {length} tokens that do not overlap", length=self.windows.shape[1])
        return joined(", ", [cut, begins])

    def lines(self, purpose: str) -> list[Sentence]:
        """What was read, for people, a line each text and one for the protocol."""
        return [Sentence("{name}: {said}", name=purpose, said=said) for said in (*(one.said() for one in self.read), self.protocol)]

    def as_dicts(self) -> list[dict[str, Any]]:
        """What was read, for manifests: names, counts and hashes, no path of this machine."""
        return [asdict(one) for one in self.read]


def read_windows(texts: str | Sequence[str], tokenizer: Tokenizer, length: int, count: int, rows: int | None = None) -> Reading:
    """Cut up to `count` windows of `length` tokens from `texts`, shared by their weights (qlab.models.texts.mixture).

    `rows`: how many tokens the model has embeddings for.

    Raises:
        UserError: a text cannot be read or holds less than one window, or it holds tokens that the model has no embedding for.
    """
    parts, start = mixture(texts), beginning(tokenizer)
    cut = [cut_text(open_text(part.source), tokenizer, length, share, rows) for part, share in zip(parts, shares(parts, count))]
    return Reading(torch.cat([windows for windows, _ in cut]), [read for _, read in cut], label_of(texts), shown(tokenizer, start))


def cut_text(text: Text, tokenizer: Tokenizer, length: int, count: int, rows: int | None = None) -> tuple[Tensor, Read]:
    """Up to `count` windows of one text, int64 [windows, length], and what was read for them.

    Raises:
        UserError: as read_windows.
    """
    start, end, used, stream = beginning(tokenizer), end_of_text(tokenizer), 0, list[int]()
    templated = has_template(tokenizer)
    for document in text.documents:
        if len(stream) >= length * count:
            break
        tokens = encode_enough(rendered(document, tokenizer), tokenizer, length * count - len(stream))
        if not (document.messages and templated):  # a template puts its own marks
            tokens = (end if stream else []) + start + tokens
        stream += tokens
        used += 1
    check_tokens(tokenizer, stream, rows, text.name)
    found, last = cut_tokens(stream, start, length, count)
    if not found:
        raise UserError(f"{text.name} has {len(stream)} tokens, less than one window of {length}; give a longer text or a shorter window")
    messages = any(document.messages for document in text.documents)
    kind = (TEMPLATED if templated else UNTEMPLATED) if messages else LINES if text.lines else PLAIN
    joined = "" if messages and templated else shown(tokenizer, end)
    read = Read(
        text.name, kind, text.sha256, len(text.documents), used, text.empty, len(stream), count, len(found), len(stream) - last, joined
    )
    return torch.tensor(found, dtype=torch.int64), read


def encode_enough(text: str, tokenizer: Tokenizer, wanted: int) -> list[int]:
    """The tokens of `text`, or of so much of its beginning that they are `wanted` and more."""
    characters = CHARACTERS_A_TOKEN * wanted
    while True:
        tokens = tokenizer.encode(clipped(text, characters), add_special_tokens=False)
        if len(tokens) >= wanted or characters >= len(text):
            return tokens
        characters *= 4


def clipped(text: str, characters: int) -> str:
    """The beginning of `text`, cut at a blank, since a word cut in two changes its tokens; anywhere in a line that has none near there."""
    if len(text) <= characters:
        return text
    blank = text.rfind(" ", characters - characters // 10, characters)
    return text[: blank if blank >= 0 else characters]


def cut_tokens(stream: Sequence[int], start: Sequence[int], length: int, count: int) -> tuple[list[list[int]], int]:
    """Up to `count` windows of `length` tokens, each beginning with `start`, put there where the stream has it not; and where they end.

    Raises:
        UserError: a window has no room for a token behind `start`.
    """
    if len(start) >= length:
        raise UserError(f"a window of {length} tokens has no room for text behind the {len(start)} that the tokenizer begins with")
    start, windows, place = list(start), list[list[int]](), 0
    while len(windows) < count:
        head = start if list(stream[place : place + len(start)]) != start else []
        end = place + length - len(head)
        if end > len(stream):
            break
        windows.append([*head, *stream[place:end]])
        place = end
    return windows, place
