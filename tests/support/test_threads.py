"""Short operations on half of the threads: the context itself, and that the results it may hold do not depend on the number of threads."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from qlab.methods.awq import best_scale
from qlab.methods.gptq import column_order, inverse_factor, one_pass
from qlab.methods.grid_search import diagonal_blocks, search_grid
from qlab.methods.kquants.blocks import encode
from qlab.methods.settle import descend
from qlab.support import threads


@pytest.fixture
def sixteen() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(16)
    yield
    torch.set_num_threads(before)


def test_half_of_the_threads_once_and_all_again_behind_an_error(sixteen: None) -> None:
    @threads.half_the_threads()
    def fails() -> None:
        assert torch.get_num_threads() == 8
        with threads.half_the_threads():
            assert torch.get_num_threads() == 8
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert torch.get_num_threads() == 16


def test_one_thread_stays_one(sixteen: None) -> None:
    torch.set_num_threads(1)
    with threads.half_the_threads():
        assert torch.get_num_threads() == 1


def results() -> dict[str, list[Tensor]]:
    """What runs on half of the threads, on made-up weights large enough for PyTorch to divide every operation."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(576, 256, generator=generator)
    inputs = torch.randn(1024, 256, generator=generator) * torch.rand(256, generator=generator)
    # Made and factored beforehand: these results do depend on the number of threads.
    with threads.half_the_threads():
        torch.set_num_threads(1)
        hessian = inputs.T @ inputs + torch.eye(256)
        places = column_order(hessian.diagonal(), 64, "group")
        factor = inverse_factor(hessian, places, 0.01)[0]
        mean_square = inputs.square().mean(0)
    assert factor is not None
    layer, rounded = one_pass(weight, factor, places, 4, 64, True, "group", True, True, "")
    blocks = encode(weight, "Q4_K", mean_square)
    return {
        "one_pass": [layer.codes, layer.scales, rounded],
        "descend": list(descend(layer.codes, layer.points, weight, hessian)),
        "search_grid": list(search_grid(weight.view(576, -1, 64), 4, False, diagonal_blocks(hessian, 64))),
        "best_scale": [best_scale(weight, inputs.abs().mean(0), mean_square, 4, 64)],
        "encode": [blocks.codes, blocks.scales, blocks.mins, blocks.d, blocks.dmin],
    }


def test_results_do_not_depend_on_the_number_of_threads(sixteen: None) -> None:
    torch.set_num_threads(1)
    alone = results()
    for number in (4, 6):  # two and three of which compute
        torch.set_num_threads(number)
        for name, tensors in results().items():
            assert all(map(torch.equal, tensors, alone[name])), f"{name} on {number} threads"


@pytest.mark.parametrize(("given", "expected"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")])
def test_waiting_threads_give_up_their_core_unless_the_user_says_otherwise(given: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    program = "import qlab, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == expected
