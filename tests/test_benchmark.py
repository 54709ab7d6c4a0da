"""The table's figures and what is drawn from them: only 4-bit formats are ranked, and drift of the machine is in the ±."""

from __future__ import annotations

import dataclasses

import pytest

from qlab.benchmark import FOUR_BIT, NOTES, SUBJECTS, Row, advice_beside, best_of, results_table
from qlab.evaluate.quality import Quality, paired_difference
from qlab.evaluate.speed import Speed, over_rounds


def row(name: str, kl: list[float], size: int = 1000, generation: float = 100.0, spread: float = 1.0) -> Row:
    mean = sum(kl) / len(kl)
    quality = Quality(20.0, 1.0, 100, 50, mean, 0.001, 0.9, -1e-9, 1e-3, kl)
    return Row(name, size, size, Speed(500, 5, generation, spread, 8, 4, 1, "some runtime"), quality)


ROWS = [
    row("FP16 original", [0.0, 0.0, 0.0], 4000),
    row("GGUF Q8_0", [1e-4, 1e-4, 2e-4], 100, 900),  # nearest, smallest and fastest of all, and no 4-bit format
    row("GGUF Q4_K_M", [0.010, 0.020, 0.030], 800, 200, 30),
    row("GPTQ by AutoGPTQ", [0.045, 0.055, 0.065], 950, 50, 5),
    row("NF4 by qlab", [0.040, 0.050, 0.061], 900, 170, 5),
    row("NF4 by bitsandbytes", [0.040, 0.050, 0.060], 900, 100, 5),
]


def test_only_four_bit_formats_are_ranked() -> None:
    best = best_of(ROWS)
    assert best["nearest to the original"] == ["GGUF Q4_K_M"]
    assert best["smallest"] == ["GGUF Q4_K_M"]
    assert all(name in FOUR_BIT for names in best.values() for name in names)
    assert {"FP16 original", "GGUF Q8_0"} == set(SUBJECTS) - set(FOUR_BIT)


def test_what_noise_hides_is_named_with_the_best() -> None:
    assert best_of(ROWS)["fastest generation here"] == ["GGUF Q4_K_M", "NF4 by qlab"]  # 200 ± 30 against 170 ± 5


def test_drift_between_rounds_is_in_the_spread() -> None:
    speed = Speed(500, 0, 270.0, 3.0, 8, 4, 1, "r")
    slower = dataclasses.replace(speed, generation=162.0)
    both = over_rounds([speed, slower])
    assert both.generation == 216
    assert both.generation_sd == pytest.approx((3**2 + 2 * 54**2) ** 0.5)
    assert over_rounds([speed]) == speed


def test_pairs_cancel_what_makes_a_window_hard() -> None:
    assert paired_difference([0.1, 0.5, 0.9], [0.0, 0.4, 0.8]) == (pytest.approx(0.1), pytest.approx(0, abs=1e-12))
    with pytest.raises(ValueError, match="zip"):
        paired_difference([0.1, 0.2], [0.1])


def test_the_table_has_units_notes_and_no_minus_before_zero() -> None:
    table = results_table(ROWS)
    assert table["notes"] == list(NOTES)
    assert "KL to FP16 (nats/token)" in table["columns"]
    assert not any("-0.0000" in cell for cells in table["rows"] for cell in cells)
    assert {len(cells) for cells in table["rows"]} == {len(table["columns"])}


def test_the_trees_advice_stands_beside_figures() -> None:
    advice = {entry["use"]: entry for entry in advice_beside(ROWS)}
    assert "GGUF Q4_K_M: KL 0.02000" in advice["Ollama or llama.cpp"]["measured here"]
    assert "NF4 by bitsandbytes" in advice["fine-tuning"]["measured here"]
    assert "GPTQ by AutoGPTQ" in advice["something else → no"]["measured here"]
    assert "Q8_0" not in str(advice)
