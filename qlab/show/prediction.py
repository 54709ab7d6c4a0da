"""A prediction that the reader commits to before a figure appears, and one line that later holds it against what was measured.

The control is of ipywidgets, since the kernel must learn the choice. Where nobody reads (papermill) or no kernel is (the exported lesson),
the question stands with its choices as text, and the answer can be opened. Question and choices are kept in English, in whichever language
they are shown.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence

import ipywidgets
from IPython.display import display

from qlab.show.drawing import shown
from qlab.show.widgets import beside
from qlab.workbook.language.spoken import gettext, say
from qlab.workbook.reader.progress import keep_prediction, kept_prediction

CLOSE = 0.1  # of the range: a prediction nearer than that is said to be close
STEPS = 50  # of a slider
EDGE = "border-left:4px solid #1f7a99;padding:4px 10px"


class Prediction:
    """A question, what the reader predicts, and later what was measured."""

    def __init__(self, question: str, choices: Sequence[str], between: tuple[float, float], unit: str) -> None:
        self.question, self.choices, self.between, self.unit = question, list(choices), between, unit
        before = kept_prediction(question)
        self.predicted = before if before is None or self.possible(before) else None
        self.answer: tuple[str | float, str, tuple[str, ...]] | None = None
        self.place = None
        self.field = self.new_field()
        self.button = ipywidgets.Button(description=gettext("I predict this"), button_style="primary")
        self.button.on_click(self.commit)
        self.status = ipywidgets.HTML(self.kept())

    def possible(self, value: str | float) -> bool:
        """Whether a prediction is one that can be chosen here."""
        if self.choices or isinstance(value, str):
            return value in self.choices
        return self.between[0] <= value <= self.between[1]

    def new_field(self) -> ipywidgets.DOMWidget:
        """Radio buttons, none of them chosen at first; or a slider, in the middle at first."""
        if self.choices:
            chosen = self.choices.index(str(self.predicted)) if self.predicted is not None else None
            options = [(gettext(choice), choice) for choice in self.choices]
            return ipywidgets.RadioButtons(options=options, index=chosen, layout=ipywidgets.Layout(width="auto"))
        low, high = self.between
        start = (low + high) / 2 if self.predicted is None else float(self.predicted)
        return ipywidgets.FloatSlider(
            value=start, min=low, max=high, step=(high - low) / STEPS, readout_format=".3g", layout=ipywidgets.Layout(width="26em")
        )

    def show(self) -> None:
        """The question with its choices as text, and the control, which stands in their place in JupyterLab."""
        if self.choices:
            listed = "".join(f"<li>{html.escape(gettext(choice))}</li>" for choice in self.choices)
            offered = f'<ul class="qlab-choices">{listed}</ul>'
        else:
            low, high = (f"{end:g}" for end in self.between)
            range_ = say("A number from {low} to {high} {unit}.", low=low, high=high, unit=self.unit)
            offered = f'<p class="qlab-choices">{html.escape(range_)}</p>'
        heading, question = html.escape(gettext("Your prediction:")), html.escape(gettext(self.question))
        page = (
            f'<div class="qlab-predict" style="{EDGE}"><p><strong>{heading}</strong> <span class="qlab-question">{question}</span></p>'
            f"{offered}<script>{beside('prediction.js')}</script></div>"
        )
        display({"text/html": page, "text/plain": gettext(self.question)}, raw=True)
        display(ipywidgets.VBox([self.field, self.button, self.status]))

    def commit(self, button: ipywidgets.Button | None = None) -> None:
        """Take the control's choice as the prediction, and keep it."""
        if self.field.value is None:
            self.status.value = status(gettext("Choose one first."))
            return
        self.predicted = self.field.value
        keep_prediction(self.question, self.field.value)
        self.status.value = self.kept()
        if self.answer:
            self.close()
            self.show_answer()

    def kept(self) -> str:
        """The line under the control."""
        if self.predicted is None:
            return status(gettext("Choose, then press the button. Then go on to the next cell."))
        return status(say("You predict: {prediction}.", prediction=self.worded(self.predicted)))

    def held_against(self, measured: str | float, detail: str = "", also: Collection[str] = ()) -> None:
        """Show what was measured beside the prediction, which cannot be changed any more.

        `measured` is one of the choices, or a number; `also` are choices that the measurement does not tell apart from it. `detail` is a
        sentence with the numbers. Where nothing was predicted the answer is folded, and a prediction is taken still.
        """
        self.answer = (measured, detail, tuple(also))
        if self.predicted is not None:
            self.close()
        self.place = None
        self.show_answer()

    def close(self) -> None:
        """Take no more predictions."""
        self.field.disabled = self.button.disabled = True

    def show_answer(self) -> None:
        """The answer, in the place where it stands already if it does."""
        opened = " open" if self.predicted is not None else ""
        said = html.escape(self.sentence())
        page = f'<details{opened} style="{EDGE}"><summary>{gettext("What was measured")}</summary><p>{said}</p></details>'
        content = {"text/html": page, "text/plain": self.sentence()}
        if self.place is None:
            self.place = display(content, raw=True, display_id=True)
        else:
            self.place.update(content, raw=True)

    def sentence(self) -> str:
        """Prediction and measurement in words."""
        assert self.answer is not None
        measured, detail, also = self.answer
        found = say("Measured: {measured}.", measured=self.worded(measured))
        if also:
            found += " " + say("Not told apart from it: {names}.", names=", ".join(map(gettext, also)))
        if detail:
            found += f" {detail}"
        if self.predicted is None:
            return f"{gettext(self.question)} {found}"
        predicted = say("You predicted: {prediction}.", prediction=self.worded(self.predicted))
        return f"{predicted} {found} {self.verdict(measured, also)}"

    def verdict(self, measured: str | float, also: Collection[str]) -> str:
        """How far the prediction is from what was measured, in words."""
        if isinstance(measured, str) or isinstance(self.predicted, str):
            if self.predicted == measured:
                return gettext("As you predicted.")
            if self.predicted in also:
                return gettext("Yours is within the error of it.")
            return gettext("It came out otherwise than you predicted.")
        assert self.predicted is not None
        if abs(measured - self.predicted) <= CLOSE * (self.between[1] - self.between[0]):
            return gettext("Your prediction is close.")
        return gettext("It is more than you predicted.") if measured > self.predicted else gettext("It is less than you predicted.")

    def worded(self, value: str | float) -> str:
        return gettext(value) if isinstance(value, str) else f"{shown(float(value))} {self.unit}".strip()


def status(text: str) -> str:
    """A line that screen readers say when it changes."""
    return f'<span role="status">{html.escape(text)}</span>'


def predict(question: str, choices: Sequence[str] = (), between: tuple[float, float] = (0, 100), unit: str = "") -> Prediction:
    """Ask the reader for a prediction: one of `choices`, or where there are none a number `between` two, in `unit`.

    It is kept in the reader's progress. Call `held_against` on the result after the figure, with what was measured.
    """
    prediction = Prediction(question, choices, between, unit)
    prediction.show()
    return prediction
