"""The arithmetic of predictions; what walks measure beside them is printed by `make bench-quantize`."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from qlab import EMBEDDED
from qlab.artifacts import budget, duration
from qlab.artifacts.block_shape import BlockShape
from qlab.methods.gptq import compensated
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.support.errors import UserError
from qlab.support.processes.process import peak_bytes, run_isolated, steady_heap
from qlab.walk.statistics import Statistics
from tests.bench.made_up import make_checkpoint

GROUPS = [(64, 192), (64, 64), (64, 256), (128, 64)]
BLOCK = BlockShape(GROUPS, [], 0)
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
    narrow, wide = (budget.working(recipe, [(width, 8)], (8, 512), "cpu", 8 * width) for width in (64, 4096))
    assert wide == 15.0 * 4096**2
    assert narrow == 15.0 * 64**2


def peak_at_work(width: int, out: int) -> int:
    """Bytes that GPTQ takes at most, as its recipe calls it, beside a matrix [out, width] and its H."""
    steady_heap()

    def compensate(width: int, out: int) -> int:
        inputs, weight = torch.randn(64, width), torch.randn(out, width)
        seen = Statistics(inputs.T @ inputs, inputs.abs().sum(0), len(inputs))
        before = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        compensated(weight.clone(), seen.attended(), 4, 128, True, "group", True, trust=seen.trust)
        return peak_bytes() - before

    compensate(256, 64)  # libraries are set up
    return compensate(width, out)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone lets a peak begin anew")
@pytest.mark.parametrize(("width", "out"), [(1536, 16), (1024, 2048)])
def test_gptq_takes_what_is_predicted(width: int, out: int) -> None:
    """Where factoring H takes most, and where going over the codes again does."""
    predicted = budget.working(parse("gptq-w4g128"), [(width, out)], (8, 512), "cpu", width * out)
    found = run_isolated(peak_at_work, width, out).value
    assert 0.9 * predicted < found < predicted + 0.3 * budget.LIBRARIES  # what does not grow with the matrix is counted there


@pytest.mark.parametrize("name", ["rtn-w4g64", "awq-w4g64", "gptq-w4g64", "nf4", "q4_k_m"])
def test_time_grows_with_the_blocks_and_every_recipe_takes_some(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duration, "speeds", lambda _: STANDARD)
    one, three = (duration.duration(BLOCK, [parse(name)], (8, 64), n, 0.0, "cpu") for n in (1, 3))
    assert three - duration.SET_UP == pytest.approx(3 * (one - duration.SET_UP))
    assert one > duration.SET_UP


def test_columns_take_time_beside_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duration, "speeds", lambda _: (0.0, 0.0, 1e-6))
    columns = sum(width for width, _ in GROUPS)
    found = duration.duration(BLOCK, [parse("gptq-w4g64")], (8, 64), 1, 0.0, "cpu")
    assert found == pytest.approx(duration.SET_UP + 1e-6 * 3 * duration.CALLS * columns)
    assert duration.duration(BLOCK, [parse("rtn-w4g64")], (8, 64), 1, 0.0, "cpu") == duration.SET_UP


def test_this_machine_has_a_speed() -> None:
    assert all(0 < seconds < 1e-2 for seconds in duration.speeds("cpu"))
    assert budget.predict(locate(str(EMBEDDED)), [parse("gptq-w4g128")], (8, 64)).seconds > 0


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (12_340_000, r"12\.35 MB of disk are needed and 12\.34 MB free in .*, 5\.0 KB too little; choose another folder"),
        (4_345_000, r"12\.35 MB of disk are needed and 4\.34 MB free in .*, 8\.00 MB too little"),
        (0, r"12\.35 MB of disk are needed and 0\.0 KB free in"),
    ],
)
def test_a_disk_that_is_too_small_is_said_in_figures_that_differ(
    free: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = budget.Budget(0, 0, 0, 0, 0, 0, disk=12_345_000, seconds=1, batch=1, blocks=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=said):
        plan.check(tmp_path / "out", "cpu")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12_345_000))
    plan.check(tmp_path / "out", "cpu")


@pytest.mark.parametrize(("size", "text"), [(2.4e9, "2.40 GB"), (1e8, "0.10 GB"), (85.3e6, "85.30 MB"), (12_000, "12.0 KB"), (0, "0.0 KB")])
def test_sizes_are_said_in_a_unit_that_shows_them(size: float, text: str) -> None:
    assert budget.size_text(size) == text


def test_larger_batches_take_more_up_to_all_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duration, "speeds", lambda _: STANDARD)
    recipes = [parse(f"tuned-w4g64-batch{size}") for size in (4, 8, 16)]
    memory = [budget.working(recipe, [(64, 64)], (8, 512), "cpu", 64 * 64) for recipe in recipes]
    seconds = [duration.duration(BLOCK, [recipe], (8, 64), 1, 0.0, "cpu") for recipe in recipes]
    assert memory[0] < memory[1] == memory[2]
    assert seconds[0] < seconds[1] == seconds[2]


def test_a_gpu_has_more_beside_an_embedding_that_it_encodes(tiny: OpenedModel) -> None:
    weights = 4096 * 256
    assert tiny.layout.shapes[tiny.layout.embedding] == (4096, 256)
    assert budget.encoding([parse("q4_k_m"), parse("nf4")], tiny, "cuda") == 26.0 * weights
    assert budget.encoding([parse("f16"), parse("nf4")], tiny, "cuda") == budget.encoding([parse("q4_k_m")], tiny, "cpu") == 0
