"""A prediction: the question without a reader, what is kept, and one line that holds it against the measurement."""

from __future__ import annotations

from typing import Any

import pytest

from qlab.show import prediction
from qlab.show.prediction import Prediction, predict
from qlab.workbook.language.spoken import VARIABLE

Page = dict[str, str]


class Place:
    """What `display` returns for an output that can be changed."""

    def __init__(self, outputs: list[Any], at: int) -> None:
        self.outputs, self.at = outputs, at

    def update(self, content: Any, **_: Any) -> None:
        self.outputs[self.at] = content


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def show(content: Any, display_id: bool = False, **_: Any) -> Place | None:
        found.append(content)
        return Place(found, len(found) - 1) if display_id else None

    monkeypatch.setattr(prediction, "display", show)
    return found


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | float]:
    """The reader's progress."""
    found: dict[str, str | float] = {}
    monkeypatch.setattr(prediction, "keep_prediction", found.__setitem__)
    monkeypatch.setattr(prediction, "kept_prediction", found.get)
    return found


def answer_of(outputs: list[Any]) -> str:
    return str(outputs[-1]["text/html"])


def test_without_a_reader_the_question_stands_and_the_answer_is_folded(outputs: list[Any], kept: dict[str, str | float]) -> None:
    asked = predict("Which is <larger>?", ["GPTQ", "R & D"])
    question = outputs[0]["text/html"]
    assert "Which is &lt;larger&gt;?" in question
    assert "<li>GPTQ</li><li>R &amp; D</li>" in question
    asked.held_against("R & D", "0.2 against 0.1.")
    assert "<details style" in answer_of(outputs)
    assert "Which is &lt;larger&gt;? Measured: R &amp; D. 0.2 against 0.1.</p>" in answer_of(outputs)
    assert kept == {}


def choose(asked: Prediction, value: Any) -> None:
    asked.field.value = value
    asked.button.click()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("A", "You predicted: A. Measured: A. Not told apart from it: B. As you predicted."),
        ("B", "Yours is within the error of it."),
        ("C", "It came out otherwise than you predicted."),
    ],
)
def test_a_choice_is_kept_and_held_against_the_measurement(
    chosen: str, said: str, outputs: list[Any], kept: dict[str, str | float]
) -> None:
    asked = predict("Which?", ["A", "B", "C"])
    asked.button.click()
    assert "Choose one first" in asked.status.value
    assert kept == {}
    choose(asked, chosen)
    assert kept == {"Which?": chosen}
    assert f"You predict: {chosen}" in asked.status.value
    asked.held_against("A", also=["B"])
    assert "<details open" in answer_of(outputs)
    assert said in answer_of(outputs)
    assert asked.field.disabled
    assert asked.button.disabled


@pytest.mark.parametrize(
    ("guess", "said"),
    [(28.0, "Your prediction is close."), (60.0, "It is less than you predicted."), (2.0, "It is more than you predicted.")],
)
def test_a_number_is_held_against_the_measurement(guess: float, said: str, outputs: list[Any], kept: dict[str, str | float]) -> None:
    asked = predict("How much?", between=(0, 100), unit="%")
    assert "A number from 0 to 100 %." in outputs[0]["text/html"]
    choose(asked, guess)
    asked.held_against(29.1234)
    assert f"You predicted: {guess:g} %. Measured: 29.1 %. {said}" in answer_of(outputs)


def test_who_predicts_after_the_figure_is_told_in_the_same_place(outputs: list[Any], kept: dict[str, str | float]) -> None:
    asked = predict("Which?", ["A", "B"])
    asked.held_against("A")
    count = len(outputs)
    choose(asked, "B")
    assert len(outputs) == count
    assert "You predicted: B. Measured: A." in answer_of(outputs)
    assert asked.field.disabled


def test_a_kept_prediction_comes_back_if_it_can_still_be_chosen(outputs: list[Any], kept: dict[str, str | float]) -> None:
    kept |= {"Which?": "B", "How much?": 30.0}
    assert predict("Which?", ["A", "B"]).field.value == "B"
    assert predict("Which?", ["A", "C"]).predicted is None
    assert predict("Which?", ["A", "C"]).field.value is None
    assert predict("How much?", between=(0, 100)).field.value == 30.0
    assert predict("How much?", between=(0, 10)).predicted is None
    asked = predict("How much?", between=(0, 100))
    asked.held_against(31.0)
    assert "<details open" in answer_of(outputs)


def test_a_prediction_in_french_is_kept_in_english(
    outputs: list[Any], kept: dict[str, str | float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "fr")
    asked = predict("Which of these has the smallest output error?", ["more than 8", "GPTQ"])
    assert "Laquelle de ces grilles" in outputs[0]["text/html"]
    assert "<li>plus de 8</li>" in outputs[0]["text/html"]
    choose(asked, "more than 8")
    assert kept == {"Which of these has the smallest output error?": "more than 8"}
    asked.held_against("more than 8", also=["GPTQ"])
    said = answer_of(outputs).replace("\u00a0", " ")
    assert "Vous aviez prédit : plus de 8. Mesuré : plus de 8. On n&#x27;en distingue pas GPTQ. Comme vous l&#x27;aviez prédit." in said
