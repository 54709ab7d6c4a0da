"""Messages in other languages: whole, with the same places for values, and nothing that is said no more."""

from __future__ import annotations

import copy
import json
import re
import string
from collections import Counter

import pytest
from babel.messages.pofile import read_po

from qlab.support.errors import UserError
from qlab.support.wording import Sentence, joined, listed, plural
from qlab.workbook.language import spoken
from qlab.workbook.language.spoken import VARIABLE, enumerated, gettext, languages, ngettext, say, speak
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


def test_a_sentence_is_made_anew_in_the_language_that_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = Sentence("{name} has KL {kl:.5f}", name="no compensation", kl=0.0123456)
    said = joined("; ", [reason, Sentence("KL {kl:.5f}, {size:.0%} of the original's size", kl=0.5, size=0.25)])
    monkeypatch.setenv(VARIABLE, "en")
    assert gettext(said) == said == "no compensation has KL 0.01235; KL 0.50000, 25% of the original's size"
    assert say("{count:,} tokens", count=1234567) == "1,234,567 tokens"
    assert json.loads(json.dumps({"why": said})) == {"why": str(said)}
    monkeypatch.setenv(VARIABLE, "fr")
    assert gettext(said) == "sans compensation a une KL de 0.01235; KL 0.50000, 25\u00a0% de la taille de l'original"
    assert gettext(copy.deepcopy(said)) == gettext(said)
    assert say("{count:,} tokens", count=1234567) == "1\u202f234\u202f567 jetons"
    assert gettext(listed(["A", "B", "C"])) == "A, B et C"
    read = [gettext(plural(count, "1 document read", "{count:,} documents read")) for count in (1, 2)]
    assert read == ["1 document lu", "2 documents lus"]
    assert say("a text that is no message") == "a text that is no message"


def test_a_template_may_hold_braces_of_its_values() -> None:
    said = Sentence("{name}: {said}", name="{x}", said="{}")
    assert copy.deepcopy(said) == said == "{x}: {}"


def test_an_unknown_language_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "en")
    with pytest.raises(UserError, match="no language 'xx': expected en or fr"):
        speak("xx")
    assert spoken.spoken() == "en"
