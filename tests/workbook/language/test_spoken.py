"""Messages in other languages: whole, with the same places for values, and nothing that is said no more."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from babel.messages.pofile import read_po

from qlab.support.errors import UserError
from qlab.workbook.language import spoken
from qlab.workbook.language.spoken import VARIABLE, enumerated, gettext, languages, ngettext, speak
from tests.workbook.language.messages import catalogue, every_message, names_in_lessons

OTHERS = languages()[1:]


def messages(language: str) -> dict[str, tuple[list[str], list[str]]]:
    """{message: (its English forms, the translated ones)}."""
    with catalogue(language).open("rb") as file:
        found = {}
        for message in read_po(file):
            if message.id:
                forms, said = (list(part) if isinstance(part, (list, tuple)) else [part] for part in (message.id, message.string))
                found[forms[0]] = (forms, said)
        return found


def values_in(text: str) -> Counter[str]:
    """Where values are put into a message, with their formats; and its code and its HTML."""
    braces = [f"{name}:{form}" for _, name, form, _ in string.Formatter().parse(text) if name] if "{α" not in text else []
    return Counter([*braces, *re.findall(r"%\(\w+\)s|`[^`]*`|<[^>]+>", text)])


def test_french_is_there() -> None:
    assert languages() == ["en", "fr"]


@pytest.mark.parametrize("language", OTHERS)
def test_every_message_is_translated(language: str) -> None:
    translated = messages(language)
    missing = [f'{where}:\nmsgid "{said}"' for said, where in every_message().items() if not all(translated.get(said, ([], [""]))[1])]
    assert not missing, f"to be translated in notebooks/{language}/messages.po:\n" + "\n".join(missing)


@pytest.mark.parametrize("language", OTHERS)
def test_nothing_is_translated_that_is_not_said(language: str) -> None:
    assert set(messages(language)) - set(every_message()) - names_in_lessons() == set()


@pytest.mark.parametrize("language", OTHERS)
def test_values_code_and_html_stay_in_a_translation(language: str) -> None:
    wrong = [said for forms, found in messages(language).values() for said in found if values_in(said) != values_in(forms[-1])]
    assert wrong == []


def test_french_has_its_spaces_and_quotes() -> None:
    texts = [re.sub(r"`[^`]*`|<[^>]+>|&\w+;|%\(\w+\)s|\{[^}]*\}", "", said) for _, found in messages("fr").values() for said in found]
    assert [text for text in texts if re.search(r" [:;?!»%]|« |\"|“", text)] == []


def test_messages_are_said_in_the_language_that_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "en")
    assert gettext("Right.") == "Right."
    assert enumerated(["A", "B", "C"]) == "A, B and C"
    speak("fr")
    assert gettext("Right.") == "Juste."
    assert gettext("as it is") == "as it is"
    assert gettext("") == ""
    assert enumerated(["A", "B", "C"]) == "A, B et C"
    assert enumerated(["A"]) == "A"
    forms = next(forms for forms, _ in messages("fr").values() if len(forms) == 2)
    assert [ngettext(*forms, count).split()[1] for count in (0, 1, 2)] == ["nom", "nom", "noms"]


def test_an_unknown_language_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "en")
    with pytest.raises(UserError, match="no language 'xx': expected en or fr"):
        speak("xx")
    assert spoken.spoken() == "en"
