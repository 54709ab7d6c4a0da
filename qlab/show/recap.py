"""The end of a lesson: the guide's claims it met, and what this run's measurements make of each."""

from __future__ import annotations

import pandas as pd
from pandas.io.formats.style import Styler

from qlab.claims import judge
from qlab.show.tables import styled
from qlab.workbook.language.spoken import gettext
from qlab.workbook.reader.progress import keep_finished
from qlab.workbook.record import recorded


def recap(lesson: str) -> Styler:
    """The claims of `lesson` judged by what has been recorded in this notebook. It is the last cell: the lesson has been run to its end."""
    keep_finished()
    rows = [
        {
            gettext("claim"): gettext(v.claim["statement"]),
            gettext("guide"): gettext(v.claim["figure"] or ""),
            gettext("verdict"): gettext(v.verdict),
            gettext("measured, or why not"): gettext(v.measured),
            gettext("by the rule"): gettext(v.rule),
        }
        for v in judge(recorded(), lesson)
    ]
    return styled(pd.DataFrame(rows)).hide(axis="index").set_properties(**{"text-align": "left", "max-width": "22em"})
