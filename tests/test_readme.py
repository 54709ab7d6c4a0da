"""The commands of README and docs/using.md name recipes, lessons, parameters and artifacts that exist."""

from __future__ import annotations

import re
import shlex

import pytest

from qlab import ROOT
from qlab.cli.lessons import chosen_lessons
from qlab.recipes import parse
from qlab.workbook.parameters import parameters_of
from qlab.workbook.reader.about import NOTEBOOKS, lesson_names

README = (ROOT / "README.md").read_text()
PAGES = README + (ROOT / "docs" / "using.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGES, re.S) for line in block.splitlines()]
WORDS = [shlex.split(line, comments=True) for line in COMMANDS]


def test_there_are_commands() -> None:
    assert sum("qlab" in words[0] for words in WORDS if words) >= 8


@pytest.mark.parametrize("name", [words[i + 1] for words in WORDS for i, word in enumerate(words) if word == "--recipe"])
def test_recipes_exist(name: str) -> None:
    assert parse(name).name == name


def test_artifacts_are_those_that_its_own_commands_make() -> None:
    made = {words[i + 1] for words in WORDS for i, word in enumerate(words) if word == "--recipe"}
    used = {word.rpartition("/")[2] for words in WORDS for word in words if word.startswith("build/quantized/")}
    assert used
    assert used <= made


def test_pictures_exist_and_are_small() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(pictures) >= 4
    for picture in pictures:
        assert 1000 < (ROOT / picture).stat().st_size < 150_000
        assert f"`{picture.removeprefix('docs/')}`" in (ROOT / "docs" / "README.md").read_text()
    assert "http" not in (ROOT / "docs" / "run.svg").read_text().replace("http://www.w3.org/", "")


def test_lessons_and_parameters_exist() -> None:
    known = {name for lesson in lesson_names() for name in parameters_of(NOTEBOOKS / f"{lesson}.ipynb")}
    for words in WORDS:
        assert {words[i + 1] for i, word in enumerate(words) if word == "-p" and words[i - 1] != "mkdir"} <= known
        for word in words:
            if re.fullmatch(r"0\d", word):
                assert chosen_lessons([word])
            if word.startswith("notebooks/"):
                assert (ROOT / word).exists()
        if words and words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
