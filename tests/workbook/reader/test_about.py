"""What every lesson says of itself is found: the contents page and the report are made of it."""

from __future__ import annotations

import pytest

from qlab.workbook.reader.about import NOTEBOOKS, about, lesson_names, said


@pytest.mark.parametrize("lesson", lesson_names())
def test_every_lesson_says_what_it_is_about(lesson: str) -> None:
    found = about(NOTEBOOKS / f"{lesson}.ipynb")
    assert found.number == str(int(lesson[:2]))
    assert len(found.title) > 10
    assert found.aim.endswith(".")
    assert "on two cores" in found.time
    assert found.need
    assert found.exercises
    assert "*" not in found.title


def test_each_part_ends_where_the_next_begins() -> None:
    text = "# 1. A\n\n**What this lesson proves:** aim one.\ngoes on.\n\n*Time:* a minute. *You need:* lesson 1, `x`. *The code:* `y`."
    assert said("Time:", text) == "A minute."
    assert said("You need:", text) == "Lesson 1, `x`."
    assert said("What this lesson proves:", text) == "Aim one. goes on."
    assert said("Other:", text) == ""
