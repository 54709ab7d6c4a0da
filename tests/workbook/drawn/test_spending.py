"""A budget of bits spent three ways: each keeps to it, one width for all seldom fills it, and it is said in the language that is spoken."""

from __future__ import annotations

import json

import pytest
import torch

from qlab.methods.widths import Choice, damage_in_all, size_of, uniform
from qlab.models.opening import OpenedModel
from qlab.show.titles import benchmarks
from qlab.workbook.drawn.spending import ALIKE, BUDGET, CHOSEN, RANDOM, WIDTHS, Spent, curves_of, spend
from qlab.workbook.language.spoken import VARIABLE, say
from qlab.workbook.lesson import open_lesson

WEIGHTS = 1000  # of each layer below
SIZE = {width: float(width * WEIGHTS) for width in WIDTHS}


def choices(*costs: float) -> dict[str, Choice]:
    """Layers that cost so much at 3 bits, and a quarter of that with each further bit."""
    return {f"{n}.q": Choice(SIZE, {width: cost * 4.0 ** (3 - width) for width in WIDTHS}) for n, cost in enumerate(costs)}


@pytest.fixture(scope="module")
def spent(tiny: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> Spent:
    work = str(tmp_path_factory.mktemp("work"))
    return spend(open_lesson(str(tiny.path), "docstrings", 2, 32, "python-reference", 2, 32, work, "cpu"))


def test_each_way_keeps_to_the_budget_and_has_its_kl_measured(spent: Spent) -> None:
    assert set(spent.bits) == set(spent.measured) == set(spent.predicted) == {CHOSEN, ALIKE, RANDOM}
    assert max(spent.bits.values()) <= BUDGET + 1e-9
    assert len(set(spent.widths[ALIKE].values())) == 1
    assert spent.bits[ALIKE] < spent.bits[CHOSEN]  # groups of 128: 4.125 bits, beside 4.5
    assert spent.predicted[CHOSEN] <= spent.predicted[ALIKE]
    assert all((found.kl or 0) > 0 for found in spent.measured.values())
    assert json.loads(json.dumps(spent.as_dict()))["bits"] == spent.bits


def test_what_was_found_is_said_with_each_size_and_in_french(spent: Spent, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = dict(zip(spent.measured, spent.lines()))
    found = spent.measured[ALIKE]
    assert lines[ALIKE] == (
        f"one width for all: {spent.bits[ALIKE]:.2f} bits a weight, KL predicted {spent.predicted[ALIKE]:.4f}, "
        f"measured {found.kl:.4f} ± {found.kl_stderr:.4f}"
    )
    monkeypatch.setenv(VARIABLE, "fr")
    assert say(lines[ALIKE]).startswith(f"une seule largeur pour toutes\u00a0: {spent.bits[ALIKE]:.2f} bits par poids, KL prédite")
    assert say(lines[CHOSEN]).startswith("d'après ce que coûte chaque couche\u00a0: ")
    assert say(lines[RANDOM]).startswith("largeurs au hasard\u00a0: ")


def test_curves_have_the_sizes_of_single_widths_so_that_all_ways_are_compared_at_one() -> None:
    offered = choices(1.0, 0.01, 0.5, 0.02)
    curves = curves_of(offered, 4 * WEIGHTS)
    assert [bits for bits, _ in curves[ALIKE]] == list(WIDTHS)
    for width in WIDTHS:
        alike = uniform(offered, 4 * SIZE[width])
        assert size_of(offered, alike) == 4 * SIZE[width]
        (bits, chosen), (_, random) = (benchmarks.at_most(curves[way], width) for way in (CHOSEN, RANDOM))
        assert bits <= width
        assert chosen <= damage_in_all(offered, alike)
        assert chosen <= random
    assert benchmarks.at_most(curves[CHOSEN], 4)[1] < 0.9 * damage_in_all(offered, uniform(offered, 4 * SIZE[4]))
    assert "% of the predicted KL of widths at random, and" in benchmarks.damage(curves, 4)


def test_layers_that_cost_alike_have_nothing_to_gain() -> None:
    assert "have no less predicted KL than widths at random (100%), and 100% of that of one width for all, 4.00 bits" in benchmarks.damage(
        curves_of(choices(1.0, 1.0), 2 * WEIGHTS), 4
    )


def test_the_layer_that_costs_most_gets_most_bits(spent: Spent) -> None:
    widths = spent.widths[CHOSEN]
    assert set(widths.values()) <= set(WIDTHS)
    assert torch.tensor(list(widths.values()), dtype=torch.float32).mean() >= 4
