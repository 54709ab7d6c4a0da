"""One picture with controls: drawn at once for every reader, redrawn where a control can be moved.

The first drawing is an ordinary output, so an error in it fails the cell and the picture shows headless and on a code
host; a control then replaces that same output in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
from IPython.display import Markdown, display


def explore(draw: Callable[..., Any], **choices: Sequence[Any]) -> None:
    """Show `draw(**first choices)` and a control for each keyword, over its list of choices.

    `draw` returns what is to be displayed; it should look things up, not compute them.
    """
    controls = {name: _control(name, list(values)) for name, values in choices.items()}
    picture = display(draw(**{name: control.value for name, control in controls.items()}), display_id=True)
    problems = ipywidgets.Output()

    def redraw(_: Any) -> None:
        problems.clear_output()
        with problems:  # an exception here would otherwise vanish
            picture.update(draw(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.observe(redraw, names="value")
    display(ipywidgets.VBox([*controls.values(), problems]))
    others = [f"{name.replace('_', ' ')} ({', '.join(map(str, control.options))})" for name, control in controls.items()]
    display(Markdown(f"*Drawn first for the first of each. In JupyterLab (`make lab`) a control redraws it for {'; '.join(others)}.*"))


def _control(name: str, values: list[Any]) -> ipywidgets.Widget:
    label = name.replace("_", " ")
    numbers = all(isinstance(value, (int, float)) for value in values)
    kind = ipywidgets.SelectionSlider if numbers else ipywidgets.Dropdown
    return kind(options=values, value=values[0], description=label, style={"description_width": "initial"})
