"""Parts of the tokens: each beside all of them, at its middle; what has no tokens is no point."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlab.workbook.drawn.parts import PLACE, SURE, by_part
from tests.show.titles.results import quality


def test_a_part_is_told_beside_all_tokens_and_one_without_tokens_is_left_out() -> None:
    found = replace(quality(), kl=0.4, kl_by_place=[0.2, 0.4, 0.4, 0.6], kl_by_confidence=[0.8, None, 0.4, 0.1])
    assert by_part({"int4": found}, PLACE)["int4"] == [(12.5, 0.5), (37.5, 1.0), (62.5, 1.0), (87.5, pytest.approx(1.5))]
    assert by_part({"int4": found}, SURE)["int4"] == [(12.5, 2.0), (62.5, 1.0), (87.5, 0.25)]
    assert by_part({"int4": quality()}, PLACE)["int4"] == []
