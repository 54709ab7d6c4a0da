"""How a verdict on an exercise is shown: a sentence or two with a coloured edge, and the values of the case that it speaks of."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from IPython.display import HTML, display

from qlab.workbook.language.spoken import gettext

RIGHT, WRONG, NEUTRAL = "#1a7f37", "#b35900", "#666"
MOST = 144  # numbers that are written out; of more, the first and the last of each row


def say(colour: str, text: str, case: Mapping[str, Any] | None = None) -> None:
    """Show `text`, and under it the values of `case` by their names."""
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left;vertical-align:top">{html.escape(name)}</th>'
        f'<td style="text-align:left"><pre style="margin:0">{html.escape(written_out(value))}</pre></td></tr>'
        for name, value in (case or {}).items()
    )
    first = html.escape(gettext("The first case that fails:"))
    table = f'<p style="padding:0 10px">{first}</p><table>{rows}</table>' if rows else ""
    display(HTML(f'<p style="border-left:4px solid {colour};padding:4px 10px">{html.escape(text)}</p>{table}'))


def written_out(value: Any) -> str:
    """A value as text: matrices in three digits, large ones shortened."""
    if isinstance(value, torch.Tensor):
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray):
        return str(np.array2string(value, precision=3, suppress_small=True, threshold=MOST, edgeitems=4, max_line_width=100))
    if isinstance(value, (list, set, frozenset)) and all(isinstance(part, str) for part in value):
        return ", ".join(sorted(value)) or gettext("(none)")
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:2000]
