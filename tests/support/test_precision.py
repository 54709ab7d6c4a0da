"""Where matrices are multiplied in BF16."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.rtn import rtn
from qlab.methods.tuned import SoftIntegers, tune
from qlab.support.precision import add_product, multiplies_bfloat16, quick_products
from qlab.walk.statistics import observed


@pytest.mark.parametrize("able", [True, False])
def test_layers_multiply_in_bf16_where_the_processor_can_and_nowhere_else(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able, "avx2": True})
    device, layer, inputs = torch.device("cpu"), torch.nn.Linear(8, 8), torch.randn(4, 8)
    assert multiplies_bfloat16(device) is able
    with quick_products(device):
        output = layer(inputs)
        assert output.dtype == (torch.bfloat16 if able else torch.float32)
        assert (inputs + output).dtype == torch.float32  # the residual stream
    assert layer(inputs).dtype == torch.float32


def test_statistics_stay_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    layer, inputs = torch.nn.Linear(32, 8), torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), observed({"layer": layer}) as seen, quick_products(torch.device("cpu")):
        layer(inputs)
    exact = inputs.double().T @ inputs.double()
    assert seen["layer"].hessian.dtype == torch.float32
    assert torch.allclose(seen["layer"].hessian.double(), exact, rtol=1e-5, atol=1e-4)


def test_a_cpu_adds_products_in_fp32_and_no_setting_is_left_behind() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    left, right, total = torch.randn(5, 40), torch.randn(40, 6), torch.randn(5, 6)
    expected = total.clone().addmm_(left, right)
    add_product(total, left, right)
    assert total.equal(expected)
    assert torch.backends.cuda.matmul.fp32_precision == before


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 2e-5)])
def test_a_gpu_adds_products_of_bf16_exactly_and_of_fp32_nearly(kind: torch.dtype, bound: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4096, 300, generator=generator).to(kind).cuda()
    total = torch.ones(512, 512, device="cuda")
    before, exact = torch.backends.cuda.matmul.fp32_precision, rows.double().T @ rows.double() + 1
    add_product(total[100:400, 200:500], rows.T, rows)  # a view, as stripes of H are
    error = (total[100:400, 200:500].double() - exact).norm() / exact.norm()
    assert float(error) < bound
    assert bool((total[:100] == 1).all() and (total[400:] == 1).all() and (total[:, :200] == 1).all())
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_tuning_of_fine_codes_multiplies_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    weight, inputs = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)), torch.randn(4, 8, 32)
    kinds = set[torch.dtype]()

    def run(parameters: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        product = hidden @ parameters["layer.weight"].T
        kinds.add(product.dtype)
        return hidden + product

    for bits, dtype in ((4, torch.bfloat16), (8, torch.float32)):
        kinds.clear()
        tune(run, {"layer": SoftIntegers(rtn(weight, bits, 32), weight)}, {}, [(inputs, inputs)], 1, torch.eye(32))
        assert kinds == {dtype}
