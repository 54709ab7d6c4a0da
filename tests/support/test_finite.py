import pytest
import torch

from qlab.support.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype: torch.dtype) -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        for place in (0, 500, 70_000):
            tensor = torch.linspace(-1, 1, 70_001, dtype=torch.float64).to(dtype)
            assert all_finite(tensor)
            tensor[place] = value
            assert not all_finite(tensor), (value, place)


def test_nan_beside_infinity_and_no_value_at_all() -> None:
    assert not all_finite(torch.tensor([float("inf"), float("nan"), -float("inf"), 0.0]))
    assert all_finite(torch.empty(0, 3))
