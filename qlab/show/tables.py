"""Tables of results, for notebooks and the report; every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from pandas.io.formats.style import Styler

from qlab.evaluate.quality import Quality

MISSING = "not measured"


def quality_table(results: Mapping[str, Quality]) -> Styler:
    """One row a name: perplexity, KL to the original, agreement, each with its standard error."""
    rows = {
        name: {
            "perplexity": f"{q.perplexity:.2f} ± {q.stderr:.2f}",
            "loss increase (nats/token)": "—" if q.loss_increase is None else f"{q.loss_increase:+.4f} ± {q.loss_increase_stderr:.4f}",
            "KL to original (nats/token)": "—" if q.kl is None else f"{q.kl:.5f} ± {q.kl_stderr:.5f}",
            "same top token": "—" if q.top1 is None else f"{q.top1:.1%}",
        }
        for name, q in results.items()
    }
    return styled(pd.DataFrame.from_dict(rows, orient="index"))


def styled(frame: pd.DataFrame) -> Styler:
    """Right-aligned, escaped, with a word in place of each missing value."""
    left = [{"selector": "th", "props": "text-align:left"}, {"selector": "td", "props": "text-align:right;padding:2px 12px"}]
    return frame.style.format(escape="html", na_rep=MISSING).set_table_styles(left)
