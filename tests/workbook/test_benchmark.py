"""The table's figures and what is drawn from them: only 4-bit formats are ranked, and drift of the machine is in the ±."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlab.evaluate.quality import Quality, paired_difference
from qlab.evaluate.rounds import Protocol
from qlab.evaluate.runtime import Memory, RuntimeFigures
from qlab.evaluate.speed import Speed, over_rounds
from qlab.evaluate.tasks import Score
from qlab.plan.footprint import Footprint
from qlab.workbook.benchmark import EIGHT_BIT, NO_PEAK, NOTES, ORIGINAL, Row, benchmark, best_of, of_formats, results_table, subjects

CONDITIONS = {"device": "cpu", "dtype": "float32", "kernel": "some", "threads": "1"}


def row(name: str, kl: list[float], size: int = 1000, generation: float = 100.0, spread: float = 1.0) -> Row:
    mean = sum(kl) / len(kl)
    quality = Quality(20.0, 1.0, 100, 50, mean, 0.001, 0.9, -1e-9, 1e-3, kl)
    speed = Speed(500, 5, generation, spread, 8, 4, "some runtime", CONDITIONS)
    memory = Memory(size, size + 10, size + 5, Footprint(size, size, 1, 7, work=size))
    scores = [Score("cloze", "acc", 0.5, 0.05, 100)]
    return Row(name, "some runtime", size, quality, RuntimeFigures(speed, memory, 1e9, 2000.0), scores=scores)


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
    assert not {ORIGINAL, EIGHT_BIT} & {name for names in best.values() for name in names}


def test_recipes_of_the_table_have_the_model_s_group_size() -> None:
    names = {recipe.name for recipe in subjects(64).values() if recipe}
    assert {"awq-w4g64", "autoawq-w4g64", "gptq-w4g64", "autogptq-w4g64"} <= names


def test_speeds_are_of_the_lesson_s_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure(folders: dict[str, Path], runtimes: list[str], protocol: Protocol) -> list[Any]:
        seen.append((protocol.device, protocol.prompt_tokens))
        return []

    monkeypatch.setattr("qlab.workbook.benchmark.measure_in_turns", measure)
    assert benchmark(SimpleNamespace(device="cpu", aside=nullcontext), {}, [], Protocol(prompt_tokens=7)) == []  # type: ignore[arg-type]
    assert seen == [("cpu", 7)]


def test_what_noise_hides_is_named_with_the_best() -> None:
    assert best_of(ROWS)["fastest generation here"] == ["GGUF Q4_K_M", "NF4 by qlab"]  # 200 ± 30 against 170 ± 5


def test_the_fastest_is_one_whose_rounds_agree() -> None:
    wild = row("AWQ by qlab", [0.010, 0.020, 0.030], 950, 900, 800)
    assert best_of([*ROWS, wild])["fastest generation here"] == ["GGUF Q4_K_M", "NF4 by qlab", "AWQ by qlab"]
    all_wild = [row("a", [0.01, 0.02], 950, 100, 90), row("b", [0.01, 0.02], 950, 10, 9)]
    assert best_of(all_wild)["fastest generation here"] == ["a", "b"]
    steady = dataclasses.replace(row("AWQ by qlab", [0.010, 0.020, 0.030], 950, 20), runtime="slower")
    assert [kept.runtime for kept in of_formats([wild, steady])] == ["slower"]


def test_drift_between_rounds_is_in_the_spread() -> None:
    speed = Speed(500, 0, 270.0, 3.0, 8, 4, "r", CONDITIONS)
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
    table = results_table(ROWS, {})
    assert table["notes"] == list(NOTES)
    assert "KL to FP16 (nats/token)" in table["columns"]
    assert not any("-0.0000" in cell for cells in table["rows"] for cell in cells)
    assert {len(cells) for cells in table["rows"]} == {len(table["columns"])}


def test_the_noise_floor_is_a_row_without_a_runtime() -> None:
    table = results_table(ROWS, {"original in BF16": dataclasses.replace(ROWS[1].quality, kl=0.00002, kl_stderr=0.0000011)})
    floor = dict(zip(table["columns"], table["rows"][-1]))
    assert (floor["format"], floor["KL to FP16 (nats/token)"]) == ("original in BF16", "0.0000200 ± 0.0000011")
    assert floor["perplexity"] == "20.00"
    assert {floor[name] for name in ("run by", "MB on disk", "cloze acc", "generation tok/s")} == {"—"}


def test_what_could_not_be_measured_has_its_reason_below_the_table() -> None:
    crashed = dataclasses.replace(ROWS[3], figures=None, problem="killed: out of memory")
    absent = dataclasses.replace(ROWS[4], figures=None, problem="vLLM is not on this machine: make vllm")
    table = results_table([ROWS[0], crashed, absent, absent], {})
    assert table["rows"][1].count("no (1)") == 7
    assert "no (2)" in table["rows"][2]
    assert "no (2)" in table["rows"][3]
    assert table["notes"][-2:] == ["no (1): killed: out of memory", "no (2): vLLM is not on this machine: make vllm"]
    assert "50.0 ± 5.0 %" in table["rows"][0]
    assert all(cell for cells in table["rows"] for cell in cells)


def test_a_peak_that_nobody_can_predict_has_its_reason_too() -> None:
    figures = ROWS[0].figures
    assert figures
    expected = dataclasses.replace(figures.memory.expected, work=None)
    unknown = dataclasses.replace(
        ROWS[0], figures=dataclasses.replace(figures, memory=dataclasses.replace(figures.memory, expected=expected))
    )
    table = results_table([ROWS[0], unknown], {})
    at = table["columns"].index("MB predicted at the peak")
    assert [cells[at] for cells in table["rows"]] == ["0", "no (1)"]
    assert table["notes"][-1] == f"no (1): {NO_PEAK}"


def test_an_absent_runtime_is_named_once_where_the_format_ran_in_another() -> None:
    absent = [dataclasses.replace(row, figures=None, runtime="vLLM", problem="vLLM is not on this machine: make vllm") for row in ROWS]
    table = results_table([*ROWS, *absent], {})
    assert len(table["rows"]) == len(ROWS)
    assert table["notes"].count("vLLM is not on this machine: make vllm") == 1


def test_an_error_smaller_than_its_digits_is_not_nothing() -> None:
    near = dataclasses.replace(ROWS[1], quality=dataclasses.replace(ROWS[1].quality, kl=0.000204, kl_stderr=0.0000031))
    assert "0.0002040 ± 0.0000031" in results_table([near], {})["rows"][0]


def test_of_several_runtimes_the_fastest_stands_for_the_format() -> None:
    slow = dataclasses.replace(row("GGUF Q4_K_M", [0.01, 0.02, 0.03], 800, 20), runtime="slow")
    failed = dataclasses.replace(slow, figures=None, problem="crashed", runtime="failed")
    assert [kept.runtime for kept in of_formats([failed, slow, ROWS[2]])] == ["some runtime"]


def test_answers_that_changed_stand_beside_a_score_and_the_control_is_the_original() -> None:
    def answered(of: Row, *answers: int) -> Row:
        choices = [dataclasses.replace(of.scores[0], answers=answers), Score("cloze", "acc_norm", 0.5, 0.05, 4)]
        return dataclasses.replace(of, scores=choices)

    rows = [answered(ROWS[0], 0, 1, 2, 3), answered(ROWS[2], 0, 1, 3, 2)]
    table = results_table(rows, {"original in BF16": ROWS[1].quality})
    at = table["columns"].index("cloze: other answers")
    assert table["columns"][at - 1 : at + 2] == ["cloze acc", "cloze: other answers", "cloze acc_norm"]
    assert [cells[at - 1] for cells in table["rows"][:2]] == ["50.0 ± 5.0 %"] * 2  # the score stays, and half of the answers do not
    assert [cells[at] for cells in table["rows"]] == ["0.0 ± 0.0 %", "50.0 ± 25.0 %", "—"]
    assert [cells[at] for cells in results_table(rows[1:], {})["rows"]] == ["—"]  # of an original that is not here nothing is known
    assert {len(cells) for cells in table["rows"]} == {len(table["columns"])}
