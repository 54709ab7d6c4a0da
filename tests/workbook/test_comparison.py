"""What lessons 2 and 3 say of the methods follows the numbers: other numbers, another verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qlab.evaluate.quality import Quality
from qlab.recipes import parse
from qlab.workbook import comparison
from qlab.workbook.comparison import METHODS, PARTS, Channels, Measured, Part

LAYERS = [f"model.layers.{block}.mlp.{kind}_proj" for block in range(4) for kind in ("gate", "up", "down")]


def quality(kl: float, spread: float = 0.001) -> Quality:
    windows = [kl - spread, kl, kl + spread, kl]
    return Quality(20.0, 1.0, 100, 50, kl, 0.001, 0.9, 0.0, 1e-3, windows)


def measured(**kl: float) -> dict[str, Measured]:
    return {name: Measured("a recipe", quality(kl[key]), dict.fromkeys(LAYERS, 0.01)) for name, key in zip(METHODS, kl, strict=True)}


def test_the_recipes_of_the_comparison_exist_and_differ() -> None:
    names = [parse(pattern.format(64)).name for pattern in METHODS.values()]
    assert len(set(names)) == len(names) == 5
    assert {name for pair in PARTS.values() for name in pair} | set(comparison.OWN_WALK) <= set(METHODS)


def test_the_nearest_is_named_and_what_is_told_apart_from_it() -> None:
    found = {"first": quality(0.30), "second": replace(quality(0.10), kl_windows=[0.1, 0.1, 0.1, 0.1]), "third": quality(0.1005, 0.01)}
    said = comparison.nearest_sentence(found, "some model")
    assert said.startswith("On some model, of first, second and third, the nearest to the original is second: KL 0.10000 ± 0.00100.")
    assert "do not tell it apart from third" in said
    assert "Farther by more than twice the error: first (+0.20000 ± 0.00041)." in said
    turned = comparison.nearest_sentence({"first": quality(0.05), "second": quality(0.10)}, "some model")
    assert turned.startswith("On some model, of first and second, the nearest to the original is first")
    assert "do not tell" not in turned
    assert comparison.brief_sentence(found) == "Nearest to the original: second, not told apart from third."
    del found["third"]
    assert comparison.brief_sentence(found) == "Nearest to the original: second, told apart from all others."


def test_the_recipe_for_awqs_layout_is_the_measured_one_beside_the_recommended_one() -> None:
    stored = {name for name, pattern in METHODS.items() if parse(pattern.format(64)).format == "awq"}
    assert stored == set(comparison.AWQ_LAYOUT)
    said = comparison.layout_sentence(measured(rtn=0.3, awq=0.1, sym=0.12, asym=0.01, both=0.08), 64)
    assert said == "Recipes for AWQ's layout: the nearest to the original is awq-gptq-w4g64, which qlab recommends."
    said = comparison.layout_sentence(measured(rtn=0.3, awq=0.1, sym=0.12, asym=0.01, both=0.11), 32)
    assert "is awq-w4g32; awq-gptq-w4g32, which qlab recommends, is farther by +0.01000 ± 0.00000." in said


def test_the_table_is_in_the_order_of_the_sentence() -> None:
    table = comparison.ranking(measured(rtn=0.3, awq=0.1, sym=0.12, asym=0.09, both=0.08))
    assert table["method"].tolist() == ["AWQ + GPTQ", "GPTQ asymmetric", "AWQ", "GPTQ symmetric", "RTN"]
    assert table["told apart"].tolist() == ["—", *["yes"] * 4]
    assert table.iloc[-1]["farther than the nearest by"] == "+0.22000 ± 0.00000"


def test_a_part_is_judged_by_the_two_methods_that_differ_in_it() -> None:
    methods = measured(rtn=0.3, awq=0.1, sym=0.12, asym=0.09, both=0.08)
    methods["AWQ + GPTQ"] = replace(methods["AWQ + GPTQ"], errors=dict.fromkeys(LAYERS[1:], 0.005))  # one layer in half precision
    by_name = {part.name: part for part in comparison.parts(methods)}
    scaling = by_name["scaling channels (AWQ)"]
    assert scaling.removed == pytest.approx(50)
    assert scaling.kl == pytest.approx(-0.01)
    assert by_name["asymmetric grids"].kl == pytest.approx(-0.03)
    assert comparison.part_sentences(list(by_name.values()))[0] == "The part with the largest gain on this model is asymmetric grids."
    table = comparison.parts_table(list(by_name.values()))
    assert table["part"].tolist() == list(PARTS)
    assert table.iloc[0].tolist()[1:] == ["GPTQ asymmetric", "AWQ + GPTQ", "-50.0 %", "-0.01000 ± 0.00000", "yes"]


@pytest.mark.parametrize(
    ("kl", "error", "told", "said"),
    [
        (-0.02, 0.001, "yes", ["The part with the largest gain on this model is the part.", "KL and the layers' error"]),
        (0.02, 0.001, "yes", ["None of these parts"]),
        (-0.02, 0.015, "no", ["None of these parts"]),
    ],
)
def test_a_part_s_sentences_turn_with_its_numbers(kl: float, error: float, told: str, said: list[str]) -> None:
    part = Part("the part", "A", "B", -4.0, kl, error)
    found = comparison.part_sentences([part])
    assert [sentence.startswith(start) for sentence, start in zip(found, said, strict=True)] == [True] * len(said)
    row = comparison.parts_table([part]).iloc[0]
    assert row["change of the layers' output error"] == "+4.0 %"
    assert row["told apart"] == told


def test_what_is_left_of_the_error_is_a_mean_over_layers_that_both_quantized() -> None:
    assert comparison.error_left({"a": 1.0, "b": 4.0, "c": 1.0}, {"a": 0.5, "b": 0.5}) == pytest.approx(0.25)


def test_unequal_channels_are_measured() -> None:
    power = torch.ones(200)
    assert comparison.channels_of(power).top_share == pytest.approx(0.01)
    power[7] = 101.0
    found = comparison.channels_of(power)
    assert found.ratio == pytest.approx(101)
    assert found.top_share == pytest.approx(102 / 300)
    assert [comparison.times(ratio) for ratio in (7.55, 1581267.2)] == ["7.5", "1,581,267"]
    assert comparison.channels_of(torch.zeros(200)) == Channels(0.0, 0.0)


def test_the_gain_of_scaling_is_held_against_the_channels() -> None:
    methods = measured(rtn=0.3, awq=0.1, sym=0.12, asym=0.09, both=0.08)
    uneven = {name: Channels(2.0 + index, 0.1) for index, name in enumerate(LAYERS)}
    rising = {name: 0.01 / (1 + index) for index, name in enumerate(LAYERS)}  # the more uneven, the less error is left
    first, second = comparison.channel_sentences(uneven, methods | {"AWQ + GPTQ": replace(methods["AWQ + GPTQ"], errors=rising)})
    assert "7.5 times the mean square of the median channel (at most 13.0 times, in 3.down_proj)" in first
    assert "10.0 % of the sum" in first
    assert second == "Added to GPTQ, scaling gains more in layers whose channels are more unequal: rank correlation +1.00 over 12 layers."
    assert comparison.together_sentence(-0.9, 12).startswith("Added to GPTQ, scaling gains less")
    assert "chance gives too" in comparison.together_sentence(0.2, 12)
