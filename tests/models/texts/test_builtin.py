"""The texts that are on every machine."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from qlab.models.texts.builtin import deduplicated, docstrings, python_reference, shuffled, statements
from qlab.support.errors import UserError


def test_both_built_in_texts_are_long_and_differ() -> None:
    reference = python_reference()
    assert len(reference) > 300_000
    numpy_documentation = list(docstrings(["numpy"]))
    assert sum(map(len, numpy_documentation)) > 500_000
    assert not set(reference.split("\n\n")) & {
        p for text in deduplicated(numpy_documentation, without=reference) for p in text.split("\n\n") if len(p) > 200
    }


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
