"""The arithmetic of predictions; what walks measure beside them is printed by `make bench-quantize`."""

from pathlib import Path

import pytest

from qlab import EMBEDDED
from qlab.artifacts import budget
from qlab.models.opening import locate
from qlab.recipes import parse
from tests.bench.made_up import make_checkpoint

GROUPS = [(64, 192), (64, 64), (64, 256), (128, 64)]
STANDARD = (2e-12, 2e-10, 1e-6)


def test_outside_the_blocks_the_largest_matrix_counts_twice(tmp_path: Path) -> None:
    model = locate(str(make_checkpoint(tmp_path / "wide", 1, hidden=2048, mlp=64, heads=16, kv_heads=1)))
    found = budget.predict(model, [parse("nf4")], (4, 64))
    assert found.rest == 2 * (4096 * 2048 * 2) + budget.LIBRARIES


def test_memory_does_not_depend_on_the_number_of_blocks(tmp_path: Path) -> None:
    found = [
        budget.predict(locate(str(make_checkpoint(tmp_path / str(n), n, 64, 128, 2, 1))), [parse("gptq-w4g64")], (4, 64)) for n in (1, 3)
    ]
    assert found[0].total - found[0].start == found[1].total - found[1].start


def test_factoring_and_fitting_scales_do_not_come_at_one_time() -> None:
    recipe = parse("gptq-w4g64")
    narrow, wide = (budget.working(recipe, [(width, 8)], 512, "cpu", 8 * width) for width in (64, 4096))
    assert wide == 19.0 * 4096**2
    assert narrow == 19.0 * 64**2


@pytest.mark.parametrize("name", ["rtn-w4g64", "awq-w4g64", "gptq-w4g64", "nf4", "q4_k_m"])
def test_time_grows_with_the_blocks_and_every_recipe_takes_some(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "speeds", lambda _: STANDARD)
    one, three = (budget.duration(GROUPS, [parse(name)], (8, 64), n, 0.0, "cpu") for n in (1, 3))
    assert three - budget.SET_UP == pytest.approx(3 * (one - budget.SET_UP))
    assert one > budget.SET_UP


def test_columns_take_time_beside_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "speeds", lambda _: (0.0, 0.0, 1e-6))
    columns = sum(width for width, _ in GROUPS)
    found = budget.duration(GROUPS, [parse("gptq-w4g64")], (8, 64), 1, 0.0, "cpu")
    assert found == pytest.approx(budget.SET_UP + 1e-6 * 3 * budget.CALLS * columns)
    assert budget.duration(GROUPS, [parse("rtn-w4g64")], (8, 64), 1, 0.0, "cpu") == budget.SET_UP


def test_this_machine_has_a_speed() -> None:
    assert all(0 < seconds < 1e-2 for seconds in budget.speeds("cpu"))
    assert budget.predict(locate(str(EMBEDDED)), [parse("gptq-w4g128")], (8, 64)).seconds > 0
