"""Lessons 2 to 5: each title says what was measured, and the opposite where that came out."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from qlab.show.titles import awq, distances, gguf, gptq, nf4
from tests.show.titles.results import quality

GROUPS = "RTN, groups of 32 (4.6 bits)"


def layer_errors(**ways: tuple[float, ...]) -> pd.DataFrame:
    return pd.DataFrame([{"layer": f"{n}.q", "way": way, "error": error} for way, found in ways.items() for n, error in enumerate(found)])


def test_which_is_nearest() -> None:
    rows = {"RTN": quality(), "AWQ": quality(-0.05, -1), "AutoAWQ": quality(-0.04)}
    assert distances.nearest(rows, "RTN") == "AWQ is nearest to the original, with 88% of the KL of RTN"
    told = distances.nearest(rows | {"GPTQ": quality(-0.05, 1.5)}, "RTN")
    assert told == "AWQ has 88% of the KL of RTN; the measurement does not tell it apart from GPTQ"
    assert "within the error of the measurement" in distances.nearest({"RTN": quality(), "AWQ": quality(-1e-6, -1)}, "RTN")
    assert distances.nearest({"RTN": quality(), "AWQ": quality(0.1)}, "RTN") == "No method is nearer to the original than RTN"


@pytest.mark.parametrize(
    ("searched", "scaled", "both", "said"),
    [
        ((-0.2, 1), (-0.1, 1), (-0.2, -1), "Searching the grids leaves 53% of RTN's KL; with scaling too, 53%: no difference can be seen"),
        ((-0.1, 1), (-0.2, 1), (-0.25, 1), "Scaling leaves 53% of RTN's KL; with searched grids too, only 41%"),
        ((-0.2, 1), (-0.1, 1), (-0.15, 1), "Searching the grids leaves 53% of RTN's KL; with scaling too, more: 65%"),
        ((0.2, 1), (0.1, 1), (-0.2, 1), "AWQ: both is nearest to the original, with 53% of the KL of RTN"),
    ],
)
def test_which_part_of_awq_brings_the_gain(
    searched: tuple[float, float], scaled: tuple[float, float], both: tuple[float, float], said: str
) -> None:
    rows = {"grids searched": quality(*searched), "scaled": quality(*scaled), "AWQ: both": quality(*both)}
    assert awq.parts({"RTN": quality(wobble=0)} | rows) == said


def test_two_are_held_against_each_other_window_by_window() -> None:
    rows = {"plain": quality(), "near": quality(-0.05, -1), "as near": quality(-0.05, 1.5)}
    said = distances.against(rows, [("near", "plain"), ("plain", "near"), ("as near", "near"), ("not measured", "plain")])
    assert said == [
        "near: nearer to the original than plain, KL -0.05000 ± 0.00018, window by window",
        "plain: farther from the original than near, KL +0.05000 ± 0.00018, window by window",
        "as near: not told apart from near, KL 0.00000 ± 0.00023, window by window",
    ]


def test_protected_channels() -> None:
    assert "removes 10.0% of the error, a random 1 % removes 1.0%" in awq.protection({awq.RANDOM: 0.99, awq.PLAIN: 1.0, awq.TOP: 0.9})
    assert "no more than twice what a random 1 % does: 10.0% and 6.0%" in awq.protection({awq.PLAIN: 1.0, awq.TOP: 0.9, awq.RANDOM: 0.94})
    errors = layer_errors(**{awq.PLAIN: (1, 1, 1), awq.RANDOM: (0.9, 0.9, 0.9), awq.TOP: (0.8, 0.9, 1.0)})
    assert awq.protection_by_layer(errors) == "The top 1 % has less error than a random 1 % in 1 of 3 layers"


def test_the_layer_that_gains_most_by_its_top_channels() -> None:
    errors = layer_errors(**{awq.PLAIN: (1.0, 1.0), awq.RANDOM: (0.99, 0.9), awq.TOP: (0.6, 0.8)})
    assert awq.most_protected(errors) == "Most is gained in 0.q: the top 1 % removes 40.0% of its error, a random 1 % 1.0%"
    worse = layer_errors(**{awq.PLAIN: (1.0, 1.0), awq.RANDOM: (0.9, 0.9), awq.TOP: (1.0, 1.1)})
    assert awq.most_protected(worse) == "In no layer does the top 1 % remove any of the error"


@pytest.mark.parametrize(
    ("same", "said"),
    [
        (8192, "All 8,192 codes are those of OBQ: on this layer GPTQ is OBQ, computed in another way"),
        (8190, "2 of 8,192 codes differ from OBQ's: at most one in a thousand, which the order of additions may explain. GPTQ is OBQ here"),
        (4096, "4,096 of 8,192 codes (50.0%) are not those of OBQ: on this layer GPTQ is another method"),
    ],
)
def test_whether_gptq_is_obq(same: int, said: str) -> None:
    assert gptq.obq(same, 8192) == said


@pytest.mark.parametrize(
    ("same", "control", "said"),
    [
        (1000, 900, "it is quantized on its own. Behind quantized blocks (control) only 90.00% are"),
        (1000, 995, "but so are 99.50% behind quantized blocks (control), so the comparison tells nothing"),
        (900, 900, "Only 90.00% of the layer's codes are the same alone and in the walk: it is not quantized on its own"),
    ],
)
def test_whether_a_layer_is_quantized_on_its_own(same: int, control: int, said: str) -> None:
    assert gptq.alone(same, control, 1000).endswith(said)


def test_rounds_of_settling() -> None:
    errors = {"Q4_K by importance": 1.0, "settled, one round": 0.4, "settled, two rounds": 0.35}
    assert gguf.rounds(errors) == "One round leaves 40% of the error, a second one 35%"
    alike = errors | {"settled, two rounds": 0.399}
    assert gguf.rounds(alike) == "One round leaves 40% of the error, and a second one lowers it no further (40%)"


def test_the_search_for_alpha() -> None:
    assert awq.sweep("0.q", [(0, 1.0), (0.5, 0.9), (1, 2.0)]) == "0.q: least error at α = 0.5, 10.0% below that at α = 0"
    assert awq.sweep("0.q", [(0, 1.0), (0.5, 1.1)]) == "0.q: no α has less error than α = 0, plain rounding"
    assert awq.least([(0, 1.0), (0.5, 0.9), (1, 2.0)]) == {"α of the least error": 0.5, "least error": 0.9}
    gains = {"0.q": 0.01, "1.v": 0.22}
    assert awq.search(gains, 0.05, 0.01).endswith("removes 5.0% of the error in the mean, 22% in 1.v; with shuffled channels 1.0%")
    assert "hardly more than with shuffled channels (4.0%)" in awq.search(gains, 0.05, 0.04)


def test_layers_in_which_the_search_finds_nothing() -> None:
    said = awq.unmoved({"0.q": 0.01, "1.v": 0.0, "2.k": 0.0}, {"0.q": 3.0, "1.v": 2.0, "2.k": 17.1})
    assert said == (
        "The least error is at α = 0 in 2 of 3 layers; the most uneven of these, 2.k, has a max/median of 17.1 (in the median layer: 3.0)"
    )
    assert awq.unmoved({"0.q": 0.01}, {"0.q": 3.0}) == "The least error is at an α above 0 in each of 1 layers"


@pytest.mark.parametrize(
    ("least", "said"),
    [
        (0.05, "Scaling alone gains by more text: with 1 of 16"),
        (0.041, "A little text is enough for scaling alone: with 1 of 16"),
        (0.03, "Scaling alone gains nothing by more text: with 1 of 16"),
    ],
)
def test_how_much_text_awq_needs(least: float, said: str) -> None:
    assert awq.calibration({1: least, 4: 0.04, 16: 0.04}).startswith(said)


def test_one_amount_of_text_says_no_more_than_its_distance() -> None:
    assert awq.calibration({1: 0.04}) == "KL 0.0400 with 1 calibration windows"


def test_where_scales_help_and_hurt() -> None:
    rows = [("scaling alone", -8.0), ("scaling alone", 2.0), ("AWQ: both", 30.0), ("AWQ: both", 40.0)]
    said = awq.changes(pd.DataFrame(rows, columns=["way", "removed"]))
    assert said == (
        "scaling alone lowers the error of 1 of 2 layers, and raises it by 3 % in the mean of all; "
        "AWQ: both lowers the error of 2 of 2 layers, by 35 % in the mean of all"
    )


def test_compensation() -> None:
    said = gptq.compensation({"RTN": 1.0, "no compensation": 1.0, "GPTQ": 0.29})
    assert said == "GPTQ leaves 29% of plain rounding's output error; without compensation 100%"
    assert gptq.compensation({"RTN": 1.0, "no compensation": 1.0, "GPTQ": 1.1}).startswith("GPTQ does not lower")
    errors = layer_errors(RTN=(1.0, 1.0), GPTQ=(0.2, 1.3), other=(0.1, 0.1))
    assert gptq.compensation_by_layer(errors) == "GPTQ has less error than plain rounding in 1 of 2 layers: 20% to 130% of it"


def test_damping() -> None:
    curve = [(0.001, 1.1), (0.01, 1.0), (100.0, 3.0)]
    said = "has the least error on the calibration text"
    rtn = ", 3.2 times with plain rounding"
    assert gptq.damping("0.q", curve, 3.2) == f"0.q: of these dampings 0.01 {said}; 1.10 times as large at 0.001, 3.0 times at 100{rtn}"
    smallest = gptq.damping("0.q", [(0.001, 1.0), (1.0, 1.5), (100.0, 3.0)], 3.2)
    assert smallest == f"0.q: of these dampings the smallest, 0.001, {said}; 3.0 times as large at 100{rtn}"
    largest = gptq.damping("0.q", [(0.001, 2.0), (1.0, 4.0), (100.0, 1.0)], 3.2)  # of a curve that does not fall all the way
    assert largest == f"0.q: of these dampings the largest, 100, {said}; 2.00 times as large at 0.001{rtn}"


@pytest.mark.parametrize(
    ("plain", "shrunk", "said"),
    [(1.1, 0.6, "GPTQ has 110% of plain rounding's KL, with H shrunk 60%"), (0.9, 0.6, "1 of 16 calibration windows are enough"),
     (1.2, 1.1, "worse than plain rounding, shrunk or not: 120%, 110%")],
)  # fmt: skip
def test_how_much_text_gptq_needs(plain: float, shrunk: float, said: str) -> None:
    few = {gptq.AS_IT_IS: plain, gptq.SHRUNK: shrunk, gptq.DIAGONAL: 1.0}
    assert said in gptq.calibration({name: {1: kl, 16: 0.5} for name, kl in few.items()})


def test_from_which_amount_of_text_gptq_is_flat() -> None:
    first, second, third, shrunk, plain = gptq.by_amount({
        gptq.AS_IT_IS: {1: 0.05, 4: 0.0208, 16: 0.02}, gptq.SHRUNK: {1: 0.025, 4: 0.0231, 16: 0.0209}, gptq.DIAGONAL: {1: 1, 4: 1, 16: 1},
    })  # fmt: skip
    assert first == "calibration windows 1: KL with H shrunk 0.02500, 50% of that with H as it is"
    assert third.startswith("calibration windows 16: KL with H shrunk 0.02090")
    assert shrunk == "H as it is: flat from 4 of 16 calibration windows on (KL within 5% of the last)"
    assert plain == "H shrunk: not flat yet, KL goes from 0.0231 with 4 to 0.0209 with 16 calibration windows"
    assert second.startswith("calibration windows 4: ")
    one = {way: {1: 0.05} for way in (gptq.AS_IT_IS, gptq.SHRUNK, gptq.DIAGONAL)}
    assert gptq.by_amount(one) == ["calibration windows 1: KL with H shrunk 0.05000, 100% of that with H as it is"]


def superblock(scales: float, groups: float) -> str:
    way, control = "Q4_K: 8 scales a superblock", "control: one scale a superblock"
    return gguf.superblock({way: 1.0, control: scales, GROUPS: groups}, way, control, GROUPS)


def test_a_superblock() -> None:
    assert superblock(2.0, 1.25) == f"Q4_K leaves 50% of the error of one scale a superblock, and 80% of that of {GROUPS}"
    assert superblock(2.0, 0.8) == f"Q4_K leaves 50% of the error of one scale a superblock, but 125% of that of {GROUPS}"
    assert superblock(0.5, 0.8).startswith("Q4_K is no better than one scale a superblock: 200% of its error")


def test_settled_codes() -> None:
    errors = {"settled, two rounds": 0.43, "control: settled by H's diagonal": 1.0, "Q4_K by importance": 1.0}
    assert gguf.settled(errors).startswith("Settled codes leave 43% of the error")
    assert gguf.settled(errors | {"settled, two rounds": 1.2}).startswith("Settled codes do not lower the error: 120% of it")


def test_what_a_file_holds() -> None:
    assert "takes 5.22 bits a weight" in gguf.bits({"f16": 16.1, "q4_k_m": 5.22})
    assert gguf.types("q4_k_m", {"Q6_K": 5, "Q4_K": 24, "F32": 9}) == "q4_k_m: of 29 matrices 24 are Q4_K and 5 are Q6_K"
    assert gguf.types("f16", {"F16": 29, "F32": 9}) == "f16: all 29 matrices are F16"


def test_which_matrices_get_another_type() -> None:
    plain = {f"blk.{block}.{kind}.weight": "Q4_K" for block in range(4) for kind in ("attn_q", "attn_v", "ffn_down")}
    types = {"token_embd.weight": "Q6_K", "output_norm.weight": "F32", **plain}
    types |= {f"blk.{block}.{kind}.weight": "Q6_K" for block in (2, 3) for kind in ("attn_v", "ffn_down")}
    assert gguf.places(types) == ["Q6_K: token_embd, attn_v (2, 3), ffn_down (2, 3)"]
    assert gguf.places(plain) == []


def test_levels_and_double_quantization() -> None:
    assert nf4.levels({"uniform levels (control)": 1.0, "NF4": 0.8}) == "NF4 leaves 80% of the output error of 16 uniform levels"
    assert nf4.levels({"NF4": 1.1, "uniform levels (control)": 1.0}).startswith("NF4 does not lower the output error")
    single, fp4 = quality(), quality(0.425)
    assert nf4.distance({"NF4": single, "NF4 double": quality(1e-6, -1), "FP4": fp4}).startswith("Double quantization raises KL by no more")
    dearer = nf4.distance({"NF4": single, "NF4 double": quality(0.0425), "FP4": fp4})
    assert dearer.endswith("1.100 times as large; FP4 is 2.0 times as far as NF4")


def trained(*afters: float, others: float | None = None) -> dict[str, dict[str, Any]]:
    """Records of trainings on NF4 and unquantized, and on GPTQ where `others` is its loss afterwards."""
    found = {
        name: {"before": [1.5, 1.3], "after": [after, after], "losses": [1.4] * 8, "frozen_bytes": 50} for name, after in zip(NAMES, afters)
    }
    return ({"GPTQ": found["NF4 (QLoRA)"] | {"after": [others, others + 0.001]}} if others is not None else {}) | found


NAMES = ("NF4 (QLoRA)", "unquantized (control)")


def training(*afters: float) -> str:
    assert nf4.training(trained(*afters)) == nf4.training(trained(*afters, others=2.0))  # the title is of the two
    return nf4.training(trained(*afters))


def test_after_training_on_another_format() -> None:
    (held,) = nf4.afterwards(trained(1.1, 1.0), 100)
    assert held == "NF4 holds 0.0 MB of frozen weights, 25% of the 0.0 MB that they are in FP16"
    lines = [nf4.afterwards(trained(1.1, 1.0, others=other), 100)[1] for other in (1.2, 1.0, 1.0995)]
    assert lines == [
        "Afterwards the loss on NF4 is below that on GPTQ: -0.1005 ± 0.0005",
        "Afterwards the loss on NF4 is above that on GPTQ: +0.0995 ± 0.0005",
        "Afterwards the loss on NF4 is not told apart from that on GPTQ: 0.0000 ± 0.0005",
    ]
    assert nf4.afterwards({"unquantized (control)": {}}, 100) == []


def test_training() -> None:
    assert training(1.1, 1.0) == "After 8 steps the loss on the same windows has fallen by 0.300 on NF4, by 0.400 unquantized"
    assert training(1.5, 1.0) == "After 8 steps the loss on the same windows changes by +0.100 on NF4, by -0.400 unquantized"
    assert training(1.1) == "After 8 steps the loss on the same windows has changed by -0.300"
    assert training(1.6) == "After 8 steps the loss on the same windows has changed by +0.200"


def test_a_new_version() -> None:
    plain, far = quality(wobble=0), quality(0.425)
    assert nf4.version({"quantized again": plain, "old artifact": far}).startswith("The old artifact is 2.0 times as far")
    assert nf4.version({"quantized again": far, "old artifact": plain}).startswith("The old artifact is nearer to the new version")
    assert "not told apart" in nf4.version({"quantized again": plain, "old artifact": quality()})
