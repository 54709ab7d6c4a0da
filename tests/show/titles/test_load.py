"""The title of what a card's figures favour, and the opposite; French in French."""

from __future__ import annotations

import pytest

from qlab.show.titles.load import paces
from qlab.workbook.language.spoken import VARIABLE


def test_who_leads_at_few_and_at_many(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = {"FP16": [(1, 1.0), (64, 2.0)], "INT8": [(1, 2.0), (64, 9.0)], "FP8": [(1, 2.0), (64, 9.0)], "INT4": [(1, 4.0), (64, 8.0)]}
    assert paces("8B", "T4", turned) == "8B on one T4: INT4 can give most tokens/s at 1 at a time, INT8 and FP8 at 64"
    alike = {"FP16": [(4, 1.0), (64, 2.0)], "INT4": [(4, 4.0), (64, 8.0), (256, 9.0)]}
    assert paces("8B", "T4", alike) == "8B on one T4: INT4 can give most tokens/s, at 4 and at 256 at a time"
    assert paces("8B", "T4", {}) == "8B does not fit on one T4"
    monkeypatch.setenv(VARIABLE, "fr")
    assert paces("8B", "T4", {}) == "8B ne tient pas sur une T4"
    assert all(paces("8B", "T4", curves).startswith("8B sur une T4\u00a0: INT4 peut") for curves in (turned, alike))
