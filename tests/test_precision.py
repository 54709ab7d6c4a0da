"""Where matrices are multiplied in BF16."""

from __future__ import annotations

import pytest
import torch

from qlab.precision import multiplies_bfloat16, quick_products


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
