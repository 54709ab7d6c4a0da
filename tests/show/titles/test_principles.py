"""Lesson 1: each title says what was measured, and the opposite where that came out."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from qlab.evaluate.quality import Quality
from qlab.show.titles import principles as titles
from qlab.workbook.drawn.parts import PLACE, SURE
from qlab.workbook.experiments import group_size_table
from tests.show.titles.results import quality

LAYER = "model.layers.0.self_attn.q_proj"


def test_what_scales_add_to_four_bits() -> None:
    said = titles.memory({"FP16": 140.0, "AWQ/GPTQ INT4 g128": 39.8})
    assert said == "A 70B in INT4 takes 39.8 GB, 14% more than a quarter of FP16 (35.0 GB)"
    assert "no more than a quarter" in titles.memory({"FP16": 140.0, "AWQ/GPTQ INT4 g128": 35.0})


def test_how_many_values_are_left() -> None:
    weights = torch.linspace(-1, 1, 100)
    rounded = {8: weights * 0.99, 4: weights * 0.9, 2: weights.sign() * 0.5}
    error = float((rounded[2] - weights).square().sum() / weights.square().sum())
    said = [titles.staircase(LAYER, bits, weights, rounded) for bits in (2, 4, 8)]
    assert said[0].startswith(f"0.q_proj: at 2 bits 100 weights keep 2 values; the squared error, {100 * error:.3g} %, is ")
    assert said[0].endswith(f"{error / 0.01:.3g} times that at 4 bits")
    assert said[1] == "0.q_proj: at 4 bits 100 weights keep 100 values; the squared error, 1 %, is 100 times that at 8 bits"
    assert said[2] == "0.q_proj: at 8 bits 100 weights keep 100 values; the squared error is 0.01 %, and at 4 bits 100 times as large"


def ladder(int3: float, int2: float, down: float) -> str:
    names = {"int4": -0.4, "int3": int3, "int2": int2, "int4, rounded down": down}
    return titles.ladder({name: quality(farther) for name, farther in names.items()})


def test_the_last_bit_and_the_control() -> None:
    assert ladder(0.0, 10.0, 1.0).startswith("From 3 to 2 bits KL grows 24.5 times, more than from 4 to 3 bits (17.0 times)")
    assert ladder(0.0, 0.1, 1.0).startswith("From 3 to 2 bits KL grows 1.2 times, no more than from 4 to 3 bits (17.0 times)")
    endings = [ladder(0.0, 0.1, down).rpartition("; ")[2] for down in (1.0, -0.1, 0.0)]
    assert endings == [
        "4 bits rounded down are farther from the original than 3 bits rounded to nearest",
        "4 bits rounded down are nearer to the original than 3 bits rounded to nearest",
        "4 bits rounded down are not told apart from 3 bits rounded to nearest",
    ]


def test_what_each_bit_costs() -> None:
    said = titles.steps({"int8": 0.001, "int4": 0.081, "int3": 0.5, "int2": 2.0})
    assert said == "From 8 to 4 bits KL grows 81 times, 3.0 times a bit; from 4 to 3 bits 6.2 times; from 3 to 2 bits 4.0 times"


def test_the_kinds_of_layers_by_their_channels() -> None:
    said = titles.kinds({"0.q": 20.0, "0.up": 2.0, "0.down": 4.0, "1.q": 10.0, "1.up": 3.0, "1.down": 5.0})
    assert said == (
        "In the median layer the largest channel is 4.5 times the median channel; the most uneven kind of layer is q, 15.0 times in its "
        "median block, the least up, 2.5 times"
    )


def answered(*answers: str, bits: int | None = None) -> list[dict[str, object]]:
    return [{"bits": bits, "prompt": str(place), "answer": answer} for place, answer in enumerate(answers)]


def test_how_many_answers_stay() -> None:
    chat = [*answered("a b c", "d e f g"), *answered("a b c", "d e x g", bits=4), *answered("y b c", "d x", bits=2)]
    assert titles.answers(chat).split("\n") == [
        "At 4 bits, word for word the original's: 1 of 2 answers; words before the others change: 2",
        "At 2 bits, word for word the original's: 0 of 2 answers; words before the others change: 0 and 1",
    ]
    same = [*answered("a b", "c"), *answered("a b", "c", bits=4)]
    assert titles.answers(same) == "At 4 bits, word for word the original's: all 2 answers"


LOOP = "the last one\n" + 3 * "equivalent method\n" + "equiv"


def test_where_an_answer_first_changes_and_where_it_repeats_itself() -> None:
    chat = [*answered("a b c", "d e"), *answered("a b c", "d e", bits=4), *answered("a b c", LOOP, bits=3), *answered("x", LOOP, bits=2)]
    assert titles.said(chat) == (
        "Of the widths tried, 3 bits is the largest at which an answer is not the original's; "
        "answers that end in one passage over and over: 1 of 2 at 3 bits and 1 of 2 at 2 bits"
    )
    own = [*answered("a", LOOP), *answered("a", LOOP, bits=4)]
    assert titles.said(own) == (
        "At no width does an answer differ from the original's; "
        "answers that end in one passage over and over: 1 of 2 of the original's own and 1 of 2 at 4 bits"
    )
    assert titles.said([*answered("a"), *answered("b", bits=4)]).endswith("; no answer ends in one passage over and over")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (LOOP, True),
        ("later_" + 12 * "raw", True),
        ("", False),
        ("Parameters\n" + 40 * "-", False),  # a line is no answer
        ("it is the same, the same, the same", False),  # too little to be told from a manner of speaking
        (3 * "equivalent method\n" + "and then it ends", False),
    ],
)
def test_what_is_one_passage_over_and_over(answer: str, found: bool) -> None:
    assert titles.loops(answer) == found


def test_the_size_of_groups() -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    weight[:, ::64] *= 20
    table = group_size_table(weight, (32, 64, 128), (4, 3))
    at = table[table["bits"] == 4].set_index("group")["relative squared error"]
    assert titles.group_size(LAYER, table, "relative squared error").endswith(
        f"groups of 32 leave {at[32] / at[128]:.0%} of the error of groups of 128"
    )
    assert "groups of 32 take 0.47 bits a weight more than groups of 128" in titles.group_size(LAYER, table, "bits/weight")
    turned = pd.DataFrame({"group": [32, 128], "bits": [4, 4], "relative squared error": [0.2, 0.1]})
    assert "have no less error than groups of 128 (200%)" in titles.group_size(LAYER, turned, "relative squared error")
    assert "only groups of 128 divide the rows" in titles.group_size(LAYER, turned[1:], "relative squared error")


def test_uneven_channels() -> None:
    read = {"1.q_proj": 17.1, "1.k_proj": 17.1, "1.v_proj": 17.1, "2.q_proj": 9.6, "0.up_proj": 12.0}
    said = titles.channels(read)
    assert (
        said == "Inputs with a channel of at least 10 times the median channel: 2, which 4 layers read; the most is 17.1 times, in 1.q_proj"
    )
    assert titles.channels({"2.q_proj": 9.6}).startswith("No layer has a channel 10 times its median channel; the most is 9.6 times")


@pytest.mark.parametrize(
    ("both", "migrated", "said"),
    [
        (0.425, 0.2, "KL 2.0 times as large; the migration takes back 53% of that"),
        (0.425, 0.5, "KL 2.0 times as large; the migration adds 18% to that"),
        (0.425, 0.425, "KL 2.0 times as large; the migration changes nothing beyond the error"),
        (0.0, 0.2, "costs nothing beyond the error"),
        (-0.05, 0.2, "costs nothing beyond the error"),
    ],
)
def test_activations_and_their_migration(both: float, migrated: float, said: str) -> None:
    rows = {"weights": quality(wobble=0), "weights and activations": quality(both), "the same, migrated": quality(migrated, -1)}
    assert said in titles.eight_bits(rows)


def test_eight_bits_beside_four() -> None:
    rows = {"weights": quality(wobble=0), "weights and activations": quality(0.075)}
    assert titles.beside_int4(rows, quality(0.575)) == "INT8, weights and activations: KL 0.5, 50 % of the KL of INT4 in 1.3"
    assert titles.beside_int4({"weights": quality()}, quality(0.425)) == "INT8, weights: KL 0.425, 50 % of the KL of INT4 in 1.3"


def test_a_model_whose_activations_cannot_be_rounded() -> None:
    assert titles.eight_bits({"weights": quality()}) == "INT8 weights alone are at KL 0.425"


def parts(place: list[float], sure: list[float | None], flips: list[float | None], error: float = 0.01) -> Quality:
    return replace(quality(), kl=1.0, kl_stderr=error, kl_by_place=place, kl_by_confidence=sure, flips_by_confidence=flips)


def test_what_the_original_is_sure_of() -> None:
    falls = parts([1.0] * 4, [2.0, 1.0, 1.0, 0.5], [0.3, 0.1, 0.1, 0.0])
    rises = parts([1.0] * 4, [0.5, 1.0, 1.5, None], [0.9, 0.8, 0.7, None])
    said = titles.parted({"int4": falls, "int2": rises}, SURE)
    assert said == "KL where the original is surest, in % of KL where it is least sure: int4 (25%) and int2 (300%)"
    assert titles.flips({"int4": falls, "int2": rises}).endswith(": int4 (30.0%, 0.0%) and int2 (90.0%, 70.0%)")
    assert titles.parted({"int4": parts([1.0] * 4, [1.0, None, None, None], [0.1, None, None, None])}, SURE) == "All tokens lie in one part"


def test_a_quarter_of_the_window_has_twice_the_error() -> None:
    rows = {"int4": parts([1.0, 1.0, 1.0, 1.05], [], []), "int3": parts([1.0, 1.0, 1.0, 0.98], [], [])}
    said = titles.parted(rows, PLACE)  # 0.05 against 2 · √2 · 2 · 0.01
    assert said == "From the first quarter of a window to the last KL changes by -2% to +5%, nowhere beyond the error"
    assert titles.parted(rows | {"int2": parts([1.0, 1.1, 1.2, 1.3], [], [])}, PLACE).endswith("-2% to +30%; beyond the error at int2")


@pytest.mark.parametrize(
    ("farther", "said"),
    [
        (0.425, "KL 0.85, 2.0 times that of a scale a token (+0.42500 ± 0.00018, window by window)"),
        (-0.2, "KL 0.225, nearer than a scale a token (-0.20000 ± 0.00018, window by window)"),
        (0.0, "KL 0.425, not told apart from a scale a token (0.00000 ± 0.00018, window by window)"),
    ],
)
def test_one_stored_scale_beside_one_a_token(farther: float, said: str) -> None:
    rows = {"the same, migrated": quality(wobble=0), "the same, one stored scale": quality(farther, 2)}
    assert titles.stored_scale(rows) == [f"One stored scale for all tokens: {said}"]
    assert titles.stored_scale({"weights": quality()}) == []
