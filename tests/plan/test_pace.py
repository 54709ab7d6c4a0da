"""What a card's published figures allow: by hand, by generation, and where 8 bits overtake 4."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlab.plan.pace import ARITHMETIC, INT4, Request, facts, generations, gpus, pace, paces
from qlab.plan.plan import BITS, SHAPES, Cached, Counted, hardware

EIGHT, SEVENTY = SHAPES["Llama-3.1-8B"], SHAPES["Llama-3.1-70B"]
REQUEST = Request(1024, 256)


def test_a_user_on_an_h100_by_hand() -> None:
    # 6.979e9 weights in blocks and 128256 × 4096 in the head, of 2 bytes, and 1152 tokens of 131,072 bytes, read at 3350 GB/s;
    # for each token of the answer four of the prompt, two operations a weight of the blocks, at 989e12 a second
    reading = ((6.979e9 + 0.5253e9) * 2 + 1152 * 131072) / 3350e9
    assert pace(EIGHT, "FP16", generations()["Hopper"], 1, REQUEST) == pytest.approx(1 / (reading + 4 * 2 * 6.979e9 / 989e12), rel=1e-3)


def test_each_generation_has_the_arithmetic_that_its_tensor_cores_have() -> None:
    able = {name: set(one.rates) for name, one in generations().items()}
    assert able["Turing"] == able["Ampere"] == {"fp16", "int8"}
    assert able["Ada"] == able["Hopper"] == {"fp16", "int8", "fp8"}
    assert gpus() == ("none", "Turing", "Ampere", "Ada", "Hopper")
    assert set(paces(EIGHT, generations()["Ampere"], 1, REQUEST)) == {"FP16", "INT8 W8A8", INT4}
    assert list(paces(EIGHT, generations()["Hopper"], 1, REQUEST)) == list(ARITHMETIC)
    assert set(ARITHMETIC) <= set(BITS)
    assert all(one.card in hardware() for one in generations().values())
    assert [row["FP8 TFLOPS"] for row in facts()] == ["—", "—", 733, 1979]


@pytest.mark.parametrize("name", ["Ampere", "Hopper"])
def test_four_bits_lead_for_few_and_eight_for_many(name: str) -> None:
    few, many = (paces(EIGHT, generations()[name], users, REQUEST) for users in (1, 64))
    assert few[INT4] > few["INT8 W8A8"] > few["FP16"]
    assert many["INT8 W8A8"] > many[INT4] > many["FP16"]
    rates = dict(generations()[name].rates)
    unpacked = replace(generations()[name], rates=rates | {"int8": rates["fp16"]})
    control = paces(EIGHT, unpacked, 64, REQUEST)  # were integers multiplied no faster, 4 bits would stay ahead
    assert control[INT4] > control["INT8 W8A8"]


def test_what_does_not_fit_has_no_pace() -> None:
    turing = generations()["Turing"]
    assert pace(EIGHT, "FP16", turing, 1, REQUEST) is None  # 16 GB of weights
    assert pace(EIGHT, INT4, turing, 1, REQUEST)
    assert paces(EIGHT, turing, 64, REQUEST) == {}
    assert paces(SEVENTY, generations()["Hopper"], 128, REQUEST) == {}
    assert pace(EIGHT, "FP8 W8A8", generations()["Ampere"], 1, REQUEST) is None


def test_of_experts_many_users_read_more() -> None:
    counted = Counted((("experts", (1000, 8_000_000)),), 10**9, 2 * EIGHT.vocabulary * EIGHT.hidden, 0, (Cached(1000, None, 0),))
    sparse = replace(EIGHT, counted=counted)
    hopper, short = generations()["Hopper"], Request(1, 256)
    one, four, eight, sixteen = (users / (pace(sparse, INT4, hopper, users, short) or 0) for users in (1, 4, 8, 16))
    assert four > 1.9 * one
    assert eight > 1.5 * four
    assert sixteen < 1.1 * eight  # all are read already
