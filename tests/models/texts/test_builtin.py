"""The texts that are on every machine."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from qlab.models.texts import builtin
from qlab.models.texts.builtin import calibration_docstrings, deduplicated, docstrings, python_reference, shuffled, statements
from qlab.support.errors import UserError


def test_both_built_in_texts_are_long_and_differ() -> None:
    reference = python_reference()
    assert len(reference) > 300_000
    numpy_documentation = list(docstrings(["numpy"]))
    assert sum(map(len, numpy_documentation)) > 500_000
    assert not set(reference.split("\n\n")) & {
        p for text in deduplicated(numpy_documentation, without=reference) for p in text.split("\n\n") if len(p) > 200
    }


def test_docstrings_are_kept_and_what_is_damaged_is_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = list[tuple[str, ...]]()

    def few(packages: tuple[str, ...]) -> list[str]:
        parsed.append(packages)
        return ["one text", "another text"]

    monkeypatch.setattr(builtin, "docstrings", few)
    monkeypatch.setattr(builtin, "KEPT", tmp_path / "new" / "texts")
    read = calibration_docstrings.__wrapped__
    first = read()
    assert sorted(first.split("\n\n")) == ["another text", "one text"]
    assert (read(), len(parsed)) == (first, 1)
    (kept,) = builtin.KEPT.iterdir()
    kept.write_text(kept.read_text() + "x")
    assert (read(), len(parsed)) == (first, 2)  # and kept anew
    assert (read(), len(parsed)) == (first, 2)
    monkeypatch.setattr(builtin, "CALIBRATION_PACKAGES", ("numpy",))
    assert (read(), len(parsed)) == (first, 3)
    monkeypatch.setattr(builtin, "KEPT", kept / "a file is no folder")
    assert (read(), len(parsed)) == (first, 4)


def test_statements_come_in_the_order_of_the_whole_walk() -> None:
    tree = ast.parse(Path(ast.__file__).read_bytes())
    kinds = (ast.Module, ast.stmt, ast.excepthandler, ast.match_case)
    assert [*statements(tree)] == [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_duplicates_are_dropped_and_half_new_texts_kept() -> None:
    first, second = "alpha beta\n\ngamma delta", "alpha  beta\n\na wholly new and longer paragraph"
    assert list(deduplicated([first, first, second])) == [first, second]
    assert list(deduplicated([first], without=first)) == []


def test_order_depends_on_the_seed_alone() -> None:
    texts = [str(i) for i in range(50)]
    assert shuffled(texts) == shuffled(iter(texts)) != texts
    assert sorted(shuffled(texts)) == sorted(texts)


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="not installed"):
        list(docstrings(["no_such_package"]))
