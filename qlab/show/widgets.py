"""A control beside a picture of every choice: one page of HTML, the same in JupyterLab, in the report, and without a kernel.

Every picture is drawn when the cell runs, so an error in any of them fails the cell, and a control answers at once: it puts a picture that
is already in the page in the place of another, by the few lines of `control.js`. Widgets that ask the kernel (ipywidgets) answer only
while it lives, not after the page is loaded again, not in an exported report, and their sliders have no name that a screen reader finds.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from IPython.display import display

from qlab.show.drawing import Drawing, shown
from qlab.workbook.language.spoken import gettext, say

MOST = 300  # pictures of one control: a page with more is slow to load


def explore(draw: Callable[..., Any], **choices: Sequence[Any]) -> None:
    """Show `draw(**first choices)` and a control for each keyword, over its list of choices: a slider for numbers, else a list.

    `draw` returns a drawing, a table or a text; it is called once for every combination and should look things up, not compute them.
    Numbers are offered in order of size, whichever is first in the list. More than `MOST` combinations are thinned out, which is said.
    """
    offered = {name: in_order(values) for name, values in thinned(choices).items()}
    first = " ".join(str(offered[name].index(values[0])) for name, values in choices.items())
    drawn = {
        " ".join(str(place) for place, _ in chosen): draw(**dict(zip(offered, (value for _, value in chosen), strict=True)))
        for chosen in product(*(list(enumerate(values)) for values in offered.values()))
    }
    pictures = {place: html_of(picture) for place, picture in drawn.items()}
    controls = "".join(control(name, values, values.index(choices[name][0])) for name, values in offered.items())
    left_out = [
        say("{name}: {shown} of {all} choices", name=label(name), shown=len(offered[name]), all=len(values))
        for name, values in choices.items()
        if len(offered[name]) < len(values)
    ]
    page = (
        f'<div class="qlab-explore"><style>{beside("control.css")}</style>'
        f'<form class="qlab-controls" autocomplete="off">{controls}</form>'
        + "".join(f"<p>{html.escape(say('Shown of {choices}.', choices=said))}</p>" for said in left_out)
        + f'<div class="qlab-picture" aria-live="polite">{pictures[first]}</div>{numbers(drawn, offered)}'
        + f'<script type="application/json">{in_script(pictures)}</script><script>{beside("control.js")}</script></div>'
    )
    display({"text/html": page, "text/plain": words_of(drawn[first])}, raw=True)


def thinned(choices: dict[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The choices, the longest list of them cut to every second, third, … where there would be more than `MOST` pictures."""
    kept = {name: list(values) for name, values in choices.items()}
    longest = max(kept, key=lambda name: len(kept[name]))
    others = 1
    for name, values in kept.items():
        others *= 1 if name == longest else len(values)
    kept[longest] = kept[longest][:: -(-len(kept[longest]) * others // MOST)]
    return kept


def in_order(values: Sequence[Any]) -> list[Any]:
    """Numbers by size; words in the order that they are given in. Each once."""
    return sorted(set(values)) if numeric(values) else list(dict.fromkeys(values))


def numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def label(name: str) -> str:
    """A parameter's or column's name for readers, in the language that is spoken."""
    return gettext(name.replace("_", " "))


def control(name: str, values: list[Any], chosen: int) -> str:
    """A slider over numbers, its value written beside it; a list of words. Both are the browser's own, with its keys and names."""
    texts = [say("{value:,}", value=value) if isinstance(value, int) else gettext(str(value)) for value in values]
    if numeric(values):
        steps = html.escape(json.dumps(texts), quote=True)
        said = f'aria-label="{html.escape(label(name))}" aria-valuetext="{texts[chosen]}"'
        field = f'<input type="range" min="0" max="{len(values) - 1}" value="{chosen}" {said} data-values="{steps}">'
        return f"<label><span>{html.escape(label(name))}</span>{field}<output>{texts[chosen]}</output></label>"
    options = "".join(
        f'<option value="{place}"{" selected" if place == chosen else ""}>{html.escape(text)}</option>' for place, text in enumerate(texts)
    )
    return f'<label><span>{html.escape(label(name))}</span><select aria-label="{html.escape(label(name))}">{options}</select></label>'


def numbers(drawn: dict[str, Any], offered: dict[str, list[Any]]) -> str:
    """The numbers of all drawings as one table, a row a choice, folded on a screen and open on paper; nothing of other pictures."""
    if not all(isinstance(picture, Drawing) and picture.values for picture in drawn.values()):
        return ""
    columns = list(dict.fromkeys(name for picture in drawn.values() for name in picture.values))
    head = "".join(f'<th scope="col">{html.escape(label(name))}</th>' for name in [*offered, *columns])
    rows = []
    for place, picture in drawn.items():
        chosen = [values[int(at)] for values, at in zip(offered.values(), place.split(), strict=True)]
        cells = [
            *(gettext(str(value)) for value in chosen),
            *(shown(picture.values[name]) if name in picture.values else "" for name in columns),
        ]
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    title = html.escape(gettext("All choices in numbers"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return (
        f"<details><summary>{title}</summary>"
        f'<div class="qlab-scroll" tabindex="0" role="region" aria-label="{title}">{table}</div></details>'
    )


def html_of(content: Any) -> str:
    """A drawing; a table or a text as it is, which scrolls within itself."""
    if isinstance(content, Drawing):
        return content.html()
    body = str(content._repr_html_()) if hasattr(content, "_repr_html_") else f"<pre><code>{html.escape(str(content))}</code></pre>"
    return f'<div class="qlab-scroll" tabindex="0" role="region" aria-label="{html.escape(gettext("What is chosen"))}">{body}</div>'


def words_of(content: Any) -> str:
    return content.words() if isinstance(content, Drawing) else str(content)


def in_script(value: Any) -> str:
    """JSON that no browser can take for the end of the script that it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


@cache
def beside(name: str) -> str:
    """A file of this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
