"""Texts and windows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlab.models.text import deduplicated, docstrings, load_text, python_reference, shuffled, windows
from qlab.support.errors import UserError


class Bytes:
    """A tokenizer of one token a byte."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())


def test_windows_are_consecutive_and_do_not_overlap() -> None:
    cut = windows("abcdefghij", Bytes(), 3, 99)
    assert cut.tolist() == [[97, 98, 99], [100, 101, 102], [103, 104, 105]]
    assert cut.dtype == torch.int64
    assert windows("abcdefghij", Bytes(), 3, 2).shape == (2, 3)


def test_too_short_a_text_says_so() -> None:
    with pytest.raises(UserError, match="2 tokens, less than one window of 3"):
        windows("ab", Bytes(), 3, 1)


def test_both_built_in_texts_are_long_and_differ() -> None:
    reference = python_reference()
    assert len(reference) > 300_000
    numpy_documentation = list(docstrings(["numpy"]))
    assert sum(map(len, numpy_documentation)) > 500_000
    assert not set(reference.split("\n\n")) & {
        p for text in deduplicated(numpy_documentation, without=reference) for p in text.split("\n\n") if len(p) > 200
    }


def test_duplicates_are_dropped_and_half_new_texts_kept() -> None:
    first, second = "alpha beta\n\ngamma delta", "alpha  beta\n\na wholly new and longer paragraph"
    assert list(deduplicated([first, first, second])) == [first, second]
    assert list(deduplicated([first], without=first)) == []


def test_order_depends_on_the_seed_alone() -> None:
    texts = [str(i) for i in range(50)]
    assert shuffled(texts) == shuffled(iter(texts)) != texts
    assert sorted(shuffled(texts)) == sorted(texts)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected 'docstrings'"):
        load_text(str(tmp_path / "absent.txt"))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match="is empty"):
        load_text(str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_text(str(tmp_path / "latin.txt"))
    with pytest.raises(UserError, match="not installed"):
        list(docstrings(["no_such_package"]))
