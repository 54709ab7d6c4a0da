"""Advice from measurements and constraints, and where it parts from the guide's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlab.workbook.recommend import recommend
from tests.workbook.test_benchmark import ROWS, row

AWQ = row("AWQ by qlab", [0.011, 0.021, 0.031], 850, 300, 5)
ALL = [*ROWS, AWQ]


def test_the_nearest_that_fits_and_can_be_put_to_the_use() -> None:
    assert recommend(ALL, "Ollama or llama.cpp", False, 1.0).measured == "GGUF Q8_0"  # nearer, and small enough here
    assert recommend(ALL[:1] + ALL[2:], "Ollama or llama.cpp", False, 1.0).measured == "GGUF Q4_K_M"
    assert recommend(ALL, "production on vLLM or TGI", False, 0.5).measured == "AWQ by qlab"
    assert recommend(ALL, "production on vLLM or TGI", False, 1.0).measured == "FP16 original"  # there is room: nothing need be lost
    assert recommend(ALL, "fine-tuning", False, 0.5).measured == "NF4 by qlab"  # of the equals, the faster


def test_a_speed_whose_rounds_disagree_recommends_nothing() -> None:
    wild = row("NF4 by another", [0.040, 0.050, 0.060], 900, 900, 800)
    assert recommend([*ALL, wild], "fine-tuning", False, 0.5).measured == "NF4 by qlab"


def test_speeds_that_are_not_told_apart_rank_nothing() -> None:
    near = [0.010, 0.020, 0.030]
    awq, gptq, small = row("AWQ by qlab", near, 950, 90, 20), row("GPTQ by qlab", near, 900, 100, 5), row("GPTQ asym", near, 850, 99, 5)
    told = recommend([ROWS[0], awq, gptq, small], "production on vLLM or TGI", False, 0.5)
    assert told.agree
    assert told.measured == "AWQ by qlab"  # which the guide names, though another is a little faster and a third smaller
    assert told.why.endswith("90 ± 20 tok/s here; not told apart by distance or speed: GPTQ by qlab and GPTQ asym")
    assert recommend([ROWS[0], gptq, small], "production on vLLM or TGI", False, 0.5).measured == "GPTQ asym"  # the smallest
    disagreeing = [row("GPTQ by qlab", near, 900, 100, 90), row("GPTQ asym", near, 850, 10, 9)]
    assert recommend([ROWS[0], *disagreeing], "production on vLLM or TGI", False, 0.5).measured == "GPTQ asym"
    faster = row("GPTQ by qlab", near, 900, 200, 5)
    assert recommend([ROWS[0], faster, small], "production on vLLM or TGI", False, 0.5).measured == "GPTQ by qlab"


def test_where_no_speed_was_measured_the_guide_s_format_is_taken_or_the_smallest() -> None:
    near = [0.010, 0.020, 0.030]
    large, small, awq = (
        replace(row(name, near, size), figures=None) for name, size in (("GPTQ by qlab", 950), ("GPTQ asym", 850), ("AWQ by qlab", 900))
    )
    assert recommend([ROWS[0], large, small], "production on vLLM or TGI", False, 0.5).measured == "GPTQ asym"
    assert recommend([ROWS[0], large, small, awq], "production on vLLM or TGI", False, 0.5).measured == "AWQ by qlab"


def test_where_it_parts_from_the_guide_it_says_why() -> None:
    agreed = recommend(ALL, "production on vLLM or TGI", False, 0.5)
    assert agreed.agree
    assert agreed.why.endswith("300 ± 5 tok/s here")
    parted = recommend([*ROWS, row("AWQ by qlab", [0.111, 0.121, 0.131], 850, 300, 5)], "production on vLLM or TGI", False, 0.5)
    assert not parted.agree
    assert parted.measured == "GPTQ by AutoGPTQ"
    assert "AWQ by qlab has KL 0.12100" in parted.why
    assert not recommend(ALL, "Ollama or llama.cpp", False, 1.0).agree  # Q8_0 is not the Q4_K_M that it names


def test_constraints_that_nothing_meets_are_said() -> None:
    small = recommend(ALL, "production on vLLM or TGI", False, 0.1)
    assert small.measured == "nothing measured here"
    assert "the smallest for this use, AWQ by qlab, takes 21%" in small.why
    assert "was measured here with layers on the CPU" in recommend(ALL, "production on vLLM or TGI", True, 1.0).why
    assert recommend(ALL, "something else", True, 0.5).guide == "GGUF Q4_K_M"
    with pytest.raises(KeyError):
        recommend(ALL, "world peace", False, 1.0)
