"""The table of families: docs/families.md is what the tests' lists make of it, and figures are those that pytest wrote of its run."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from qlab import ROOT
from tests.formats.gguf import test_families as gguf
from tests.walk import family_table
from tests.walk import test_all_families as walk
from tests.walk.families import FAMILIES
from tests.walk.family_table import COLUMNS, MADE, PLAN, REFUSES, RUNS, WALK, document, listed, noted, table


def test_the_document_is_what_the_lists_make_of_it() -> None:
    told = (ROOT / "docs" / "families.md").read_text()
    assert told == document(), "stale: python -m tests.walk.family_table > docs/families.md"


def test_every_family_has_a_test_in_every_column() -> None:
    for family, line in zip(FAMILIES, table(listed())[2:]):
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        assert len(cells) == len(COLUMNS)
        assert cells.count("refused") == (2 if family in gguf.REFUSED else 0)
        assert set(cells) <= {"yes", "refused"}, line


def test_the_tests_that_are_named_go_over_these_lists() -> None:
    for module, name in ((walk, WALK), (walk, MADE), (walk, PLAN), (gguf, RUNS), (gguf, REFUSES)):
        assert "family" in inspect.signature(getattr(module, name)).parameters
    over = {name: list(getattr(gguf, name).pytestmark[0].args[1]) for name in (RUNS, REFUSES)}
    assert over == {RUNS: [*gguf.WRITTEN, *gguf.MORE], REFUSES: list(gguf.REFUSED)}


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
