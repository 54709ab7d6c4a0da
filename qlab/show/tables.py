"""Tables of results, for notebooks and the report; every text is escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from qlab.evaluate.quality import Quality
from qlab.show.drawing import shown
from qlab.support.wording import layer_place, signed
from qlab.workbook.language.spoken import gettext, say

FIGURE = re.compile(r"[+−-]?[\d.,]+( ± [\d.,]+)?( ?%)?")
ABSENT = re.compile(r"—|non? \(\d+\)")  # in the place of a figure; the second with a note


def quality_table(results: Mapping[str, Quality]) -> Styler:
    """One row a name: perplexity, KL to the original, agreement, each with its standard error."""
    rows = {
        gettext(name): {
            gettext("perplexity"): f"{q.perplexity:.2f} ± {q.stderr:.2f}",
            gettext("loss increase (nats/token)"): "—"
            if q.loss_increase is None
            else f"{signed(q.loss_increase, 4)} ± {q.loss_increase_stderr:.4f}",
            gettext("KL to original (nats/token)"): "—" if q.kl is None else f"{abs(q.kl):.5f} ± {q.kl_stderr:.5f}",
            gettext("same top token"): "—" if q.top1 is None else f"{q.top1:.1%}",
        }
        for name, q in results.items()
    }
    return styled(pd.DataFrame.from_dict(rows, orient="index"))


def styled(frame: pd.DataFrame) -> Styler:
    """Escaped, with a word in place of each missing value; text to the left, numbers to the right."""
    styles: list[Any] = [{"selector": "th, td", "props": "text-align:left;padding:2px 12px;vertical-align:top"}]
    for position, name in enumerate(frame.columns):
        if is_number(frame[name]):
            styles.append({"selector": f"th.col{position}, td.col{position}", "props": "text-align:right"})
            styles.append({"selector": f"td.col{position}", "props": "white-space:nowrap"})  # a number and its error on one line
    return frame.style.format(escape="html", na_rep=gettext("not measured")).set_table_styles(styles)


def table_of(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> Styler:
    """A table as `styled`, without an index: names of columns and texts in the language that is spoken, those that are messages."""
    listed = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    said = [{in_words(name): in_words(value) for name, value in row.items()} for row in listed]
    return styled(pd.DataFrame(said)).hide(axis="index")


def in_words(value: Any) -> Any:
    """A cell of a table: yes or no, three digits of a fraction, a text in the language that is spoken."""
    if isinstance(value, bool):
        return gettext("yes" if value else "no")
    if isinstance(value, str):
        return gettext(value)
    return shown(value) if isinstance(value, float) and math.isfinite(value) else value


def texts(frame: pd.DataFrame) -> Styler:
    """A table of longer texts, with their line breaks, as `styled`; without the index."""
    return styled(frame).hide(axis="index").set_properties(**{"white-space": "pre-wrap", "overflow-wrap": "anywhere", "max-width": "20em"})


def is_number(column: pd.Series) -> bool:
    """Whether a column holds numbers, perhaps written out with their unit or error."""
    if pd.api.types.is_numeric_dtype(column):
        return True
    texts = [value for value in column if isinstance(value, str) and not ABSENT.fullmatch(value)]
    return bool(texts) and all(FIGURE.fullmatch(text) for text in texts)


def error_table(errors: Mapping[str, float]) -> pd.DataFrame:
    """Errors of layers, by full name, as a matrix: a row a block, a column a kind of layer (q_proj, …), in the order given.

    Of a block's experts, which may be hundreds, a cell is the mean.
    """
    found: dict[tuple[int, str], list[float]] = {}
    for name, error in errors.items():
        block, experts, kind = layer_place(name)
        found.setdefault((block, say("{kind} of experts", kind=kind) if experts else kind), []).append(error)
    kinds = list(dict.fromkeys(kind for _, kind in found))
    means = {place: fmean(each) for place, each in found.items()}
    table = pd.DataFrame([[means.get((block, kind)) for kind in kinds] for block in sorted({block for block, _ in found})], columns=kinds)
    return table.rename_axis(index="block", columns="layer")
