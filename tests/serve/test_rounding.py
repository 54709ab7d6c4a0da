"""How runtimes round, done in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import nn

from qlab.serve.rounding import eight_bit_inputs, eight_bits, half_outputs


def test_short_blocks_are_llamacpps_q8_0() -> None:
    values = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    stored = quants.quantize(values.numpy(), GGMLQuantizationType.Q8_0)
    theirs = torch.from_numpy(quants.dequantize(stored, GGMLQuantizationType.Q8_0).astype(np.float32))
    assert (eight_bits(values) - theirs).abs().max() <= values.abs().max() / 127 * 0.51  # it stores the scale in FP16
    assert (eight_bits(values) != values).any()


def test_long_rows_share_a_scale_in_256() -> None:
    values = torch.ones(1, 512)
    values[0, 0], values[0, 256:] = 127.0, 0.4
    assert eight_bits(values)[0, 1] == 1.0
    values[0, 1:256] = 0.4
    assert (eight_bits(values)[0, 1:256] == 0).all(), "0.4 of a step of 1"
    assert eight_bits(values)[0, 256:] == pytest.approx(0.4)


def test_rounding_ends_with_its_context() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    exact = model(inputs)
    found = {}
    for name, rounding in {"8 bits": eight_bit_inputs, "fp16": half_outputs(torch.float16), "bf16": half_outputs(torch.bfloat16)}.items():
        with rounding(model):
            found[name] = float((model(inputs) - exact).detach().abs().mean())
        assert torch.equal(model(inputs), exact)
    assert 0 < found["fp16"] < found["bf16"]
    assert found["fp16"] < found["8 bits"]
