"""Names, paths and weights as people type them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlab.models.texts.mixture import Part, absolute, check_texts, files_of, label_of, load_text, mixture, shares
from qlab.support.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "c:2", "d,e.txt", "C:\\texts\\f.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    return tmp_path


def test_names_paths_and_weights(folder: Path) -> None:
    assert mixture("docstrings") == [Part("docstrings")]
    assert mixture(["a.txt:2", "prompts:0.5"]) == [Part("a.txt", 2), Part("prompts", 0.5)]
    assert mixture("a.txt:2, b.txt") == [Part("a.txt", 2), Part("b.txt")]
    assert mixture("c:2") == [Part("c:2")]  # a file that is there is no weight
    assert mixture("c:2:3") == [Part("c:2", 3)]
    assert mixture("d,e.txt:2,a.txt") == [Part("d,e.txt", 2), Part("a.txt")]
    assert mixture("C:\\texts\\f.txt:2") == [Part("C:\\texts\\f.txt", 2)]
    assert label_of([f"{folder}/a.txt:2", "docstrings"]) == "a.txt:2,docstrings"
    assert [part.source for part in mixture(absolute("a.txt:2,docstrings"))] == [str(folder / "a.txt"), "docstrings"]
    assert files_of("a.txt:2,docstrings") == [Path("a.txt")]
    assert load_text("a.txt:2,b.txt") == "text of a.txt\n\ntext of b.txt"


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "two", ""])
def test_weights_that_are_none(folder: Path, weight: str) -> None:
    with pytest.raises(UserError, match="the weight of a text is a positive number"):
        mixture(f"a.txt:{weight}")


def test_what_cannot_be_meant(folder: Path) -> None:
    for wrong in ("absent.txt", "absent.txt:2", "C:\\absent.txt", "a" * 5000, "nul\0"):
        with pytest.raises(UserError, match=r"no text .*expected 'docstrings', 'python-reference', 'prompts'"):
            check_texts(wrong)
    with pytest.raises(UserError, match="named twice"):
        mixture(["a.txt", "a.txt:2"])
    with pytest.raises(UserError, match="no text is named"):
        mixture(" , ")


def test_windows_are_shared_whole() -> None:
    assert shares([Part("a", 2), Part("b")], 128) == [85, 43]
    assert shares([Part("a"), Part("b"), Part("c")], 4) == [2, 1, 1]
    assert shares([Part("a", 1e-300), Part("b", 1e-300)], 2) == [1, 1]
    with pytest.raises(UserError, match="of 4 windows none is left for b"):
        shares([Part("a", 100), Part("b")], 4)
