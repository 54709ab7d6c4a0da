"""What to take at few and at many users, on each generation; and when not to quantize."""

from __future__ import annotations

import pytest

from qlab.plan.pace import INT4, NONE, Request, gpus
from qlab.plan.plan import SHAPES
from qlab.workbook.crowd.advice import LADDER, Choice, choose, every_choice

EIGHT, SEVENTY = SHAPES["Llama-3.1-8B"], SHAPES["Llama-3.1-70B"]
REQUEST = Request(1024, 256)
LOADS = {"f16": {1: 20.0, 4: 60.0, 16: 160.0, 64: 320.0}, "q4_k_m": {1: 50.0, 4: 100.0, 16: 165.0, 64: 200.0}}


def on(gpu: str, users: int, wanted: float) -> Choice:
    return choose(EIGHT, LOADS, gpu, users, REQUEST, wanted)


@pytest.mark.parametrize(
    ("gpu", "users", "wanted", "take"),
    [
        ("Turing", 1, 10, "INT8 W8A8"),
        ("Turing", 1, 25, INT4),
        ("Turing", 256, 10, "more cards, or fewer users at a time"),
        ("Ampere", 1, 50, "FP16: do not quantize"),
        ("Ampere", 1, 150, INT4),
        ("Ampere", 64, 30, "INT8 W8A8"),
        ("Ampere", 64, 1000, "INT8 W8A8"),
        ("Ada", 1, 20, "FP16: do not quantize"),
        ("Ada", 1, 80, INT4),
        ("Ada", 64, 15, "INT8 W8A8"),
        ("Hopper", 1, 100, "FP16: do not quantize"),
        ("Hopper", 1, 300, INT4),
        ("Hopper", 64, 50, "INT8 W8A8"),
        ("Hopper", 64, 20, "FP16: do not quantize"),
    ],
)
def test_by_generation_at_few_and_at_many(gpu: str, users: int, wanted: float, take: str) -> None:
    assert on(gpu, users, wanted).take == take


def test_reasons_name_the_card_and_what_stands_beside() -> None:
    found = on("Hopper", 64, 50)
    assert found.why == (
        "by arithmetic on half of NVIDIA H100 80GB SXM's published figures INT8 W8A8 would give each user about 71 tokens/s, "
        "and 50 are asked; FP16: 45.5; FP8 W8A8 as many"
    )
    assert "FP8" not in on("Ampere", 64, 30).why  # which has no such arithmetic
    assert "nothing nearer to the original is at hand" in on("Turing", 1, 10).why
    assert "NVIDIA T4 has room for 14.40" in on("Turing", 256, 10).why
    with pytest.raises(KeyError):
        on("Volta", 1, 10)


def test_without_a_gpu_lesson_6_decides() -> None:
    assert on(NONE, 1, 10).take == "f16: do not quantize"
    assert (
        on(NONE, 1, 10).why
        == "measured in lesson 6 with 1 at a time, whose prompts and answers are short: f16 gives each user 20.0 tokens/s, and 10 are asked"
    )
    assert on(NONE, 1, 30).take == "q4_k_m"
    assert on(NONE, 2, 18).take == "q4_k_m"  # by 4 at a time, where f16 gives 15: what 1 gets says nothing of 2
    assert on(NONE, 1, 30).why.endswith("q4_k_m gives each user 50.0 tokens/s, and 30 are asked; f16: 20.0")
    assert on(NONE, 3, 1).why.startswith("measured in lesson 6 with 4 at a time")
    assert on(NONE, 65, 1) == Choice("not measured", "lesson 6 had at most 64 users at a time")


def test_where_fewer_bits_are_no_faster_nothing_is_quantized() -> None:
    many, level = on(NONE, 64, 10), on(NONE, 16, 100)
    assert many.take == level.take == "f16: do not quantize"
    assert many.why.endswith("f16 gives each user 5.0 tokens/s, fewer than the 10 asked, but no other is more than 5% faster")
    control = choose(EIGHT, LOADS | {"q4_k_m": {16: 180.0}}, NONE, 16, REQUEST, 100)
    assert control.take == "q4_k_m"


def test_what_was_not_measured_is_said() -> None:
    for loads in ({}, {"f16": {}, "q4_k_m": {1: 5.0}}, {"f16": {1: 0.0}}):
        found = choose(EIGHT, loads, NONE, 1, REQUEST, 10)
        assert found.take == "not measured"
        assert "lesson 6 does that" in found.why


def test_every_case_is_a_row_and_asked_for_no_speed_it_is_fp16_wherever_that_fits() -> None:
    rows = every_choice({"own": EIGHT, "other": SEVENTY}, LOADS, 3, REQUEST, 0)
    assert len(rows) == 2 * len(gpus()) * (len(LADDER) + 1)
    assert {row["users"] for row in rows} == {3, *LADDER}
    takes = {(row["model"], row["GPU"], row["users"]): row["take"] for row in rows}
    assert takes["own", NONE, 4] == "f16: do not quantize"
    assert takes["other", NONE, 4] == "not measured"  # loads are the first model's
    assert takes["own", "Hopper", 64] == "FP16: do not quantize"
    assert {takes["other", gpu, 16] for gpu in ("Turing", "Ada")} == {"more cards, or fewer users at a time"}
    quantized = every_choice({"own": EIGHT}, LOADS, 3, REQUEST, 1e9)
    assert sum(row["take"].startswith("FP16") for row in quantized) == 0
