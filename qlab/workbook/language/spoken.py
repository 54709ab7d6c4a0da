"""The language that a reader is spoken to in, and messages in it.

English is what qlab is written in. Another language is a folder beside the notebooks: `messages.po`, a catalogue of GNU gettext, and a file
a lesson. The language that is spoken stands in the environment, because a lesson's cells run in processes of their own.
"""

from __future__ import annotations

import io
import os
import string
from collections.abc import Sequence
from functools import cache
from gettext import GNUTranslations, NullTranslations
from typing import Any

from qlab import ROOT
from qlab.support.errors import UserError
from qlab.support.wording import Sentence, listed

VARIABLE = "QLAB_LANGUAGE"
ENGLISH = "en"
FOLDER = ROOT / "notebooks"  # of the languages' folders
MESSAGES = "messages.po"
# What other languages write in numbers otherwise than English. The decimal point stays, as it stands in code and on axes.
NUMBERS = {"fr": {",": "\u202f", "%": "\u00a0%"}}


def languages() -> list[str]:
    """English, then all others, by their codes of two letters."""
    return [ENGLISH, *sorted(file.parent.name for file in FOLDER.glob(f"*/{MESSAGES}"))]


def speak(language: str) -> None:
    """Speak `language` in this process, and in those that it starts.

    Raises:
        UserError: there is no such language.
    """
    if language not in languages():
        raise UserError(f"no language {language[:60]!r}: expected {' or '.join(languages())}")
    os.environ[VARIABLE] = language


def spoken() -> str:
    """The language that is spoken: what `speak` set, in this process or the one that started it.

    Raises:
        UserError: the environment names a language that there is not.
    """
    language = os.environ.get(VARIABLE) or ENGLISH
    if language != ENGLISH and language not in languages():
        raise UserError(f"{VARIABLE} is {language[:60]!r}: expected {' or '.join(languages())}")
    return language


def gettext(message: str) -> str:
    """An English message in the language that is spoken; as it is where it has no translation.

    A `Sentence` is made anew from its template in that language, with values that are messages in it too.
    """
    if isinstance(message, Sentence) and spoken() != ENGLISH:
        return Filling().vformat(gettext(message.template), (), message.values)
    return messages(spoken()).gettext(message) if message else ""  # by the empty text a catalogue describes itself


def say(message: str, /, **values: Any) -> str:
    """An English message with values for its named fields, in the language that is spoken."""
    return gettext(Sentence(message, **values)) if values else gettext(message)


class Filling(string.Formatter):
    """Puts values into a template: texts in the language that is spoken, numbers as it writes them."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, str):
            return format(gettext(value), format_spec)
        written = format(value, format_spec)
        for english, own in NUMBERS.get(spoken(), {}).items():
            written = written.replace(english, own)
        return written


def ngettext(one: str, several: str, count: int) -> str:
    """The message for `count` things, in the language that is spoken; `one` and `several` are English."""
    return messages(spoken()).ngettext(one, several, count)


def enumerated(names: Sequence[str]) -> str:
    """A, B and C, in the language that is spoken."""
    return gettext(listed(names))


@cache
def messages(language: str) -> NullTranslations:
    """All messages in a language."""
    if language == ENGLISH:
        return NullTranslations()
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    compiled = io.BytesIO()
    with (FOLDER / language / MESSAGES).open("rb") as file:
        write_mo(compiled, read_po(file))
    compiled.seek(0)
    return GNUTranslations(compiled)
