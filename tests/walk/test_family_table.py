"""The table of families: made of what pytest wrote of its run, and docs/families.md has a row for each family that the tests go over."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlab import ROOT
from tests.formats.gguf.test_families import REFUSED
from tests.walk import family_table
from tests.walk.families import FAMILIES
from tests.walk.family_table import COLUMNS, MADE, PLAN, REFUSES, RUNS, WALK, noted, table

ROWS = {
    cells[0].split()[0]: dict(zip(COLUMNS, cells[1:], strict=True))
    for line in (ROOT / "docs" / "families.md").read_text().splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 1 + len(COLUMNS) and cells[0] != "family"
    if not cells[0].startswith("-")
}


def test_every_family_has_its_row() -> None:
    assert list(ROWS) == list(FAMILIES)
    for family, row in ROWS.items():
        assert {row["GGUF F16"] == "refused", row["GGUF Q4_K_M"] == "refused"} == {family in REFUSED}
        assert not {"failed", "not tried"} & set(row.values())


def test_cells_are_what_tests_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def case(test: str, family: str, inner: str = "") -> str:
        return f'<testcase name="{test}[{family}]">{inner}</testcase>'

    def properties(**values: str) -> str:
        each = [f'<property name="{name}" value="{value}"/>' for name, value in values.items()]
        return f"<properties>{''.join(each)}</properties>"

    file = tmp_path / "run.xml"
    cases = [
        case(WALK, "olmo2", properties(walk="1e-06")), case(MADE, "olmo2", '<failure message="no"/>'), case(PLAN, "olmo2"),
        case(RUNS, "olmo2", properties(f16="2e-04", q4_k_m="3e-03")), case(WALK, "phimoe", "<skipped/>"), case(REFUSES, "phimoe"),
    ]  # fmt: skip
    file.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    monkeypatch.setattr(family_table, "FAMILIES", {name: FAMILIES[name] for name in ("olmo2", "phimoe")})
    lines = table(noted(file))
    assert lines[2] == "| olmo2 | 1e-06 | failed | failed | failed | failed | failed | 2e-04 | 3e-03 | yes |"
    assert lines[3].startswith("| phimoe ᴱ | not tried |")
    assert lines[3].endswith("| refused | refused | not tried |")
