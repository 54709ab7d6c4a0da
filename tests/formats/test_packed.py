"""AWQ and GPTQ checkpoints, read back as the libraries that wrote them meant them."""

from __future__ import annotations

import torch

from qlab.formats import awq, gptq
from qlab.peers.autogptq import revived


def codes(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 16, (rows, columns), generator=torch.Generator().manual_seed(seed))


def test_awq_unpacks_what_autoawq_packed() -> None:
    from awq.modules.linear.gemm import WQLinear_GEMM

    out_features, in_features, size = 32, 256, 64
    scales = torch.rand(in_features // size, out_features).half() * 0.01 + 0.001
    zeros, wanted = codes(in_features // size, out_features, 0), codes(out_features, in_features, 1)
    linear = torch.nn.Linear(in_features, out_features, bias=False).half()
    spread = lambda values: values.T.repeat_interleave(size, dim=1)  # noqa: E731
    linear.weight.data = (wanted - spread(zeros)) * spread(scales)
    packed = WQLinear_GEMM.from_linear(linear, 4, size, scales=scales, zeros=zeros)
    ours = awq.unpack({"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales})
    assert torch.equal(ours.codes.long(), wanted)
    assert torch.equal(ours.zeros.long(), zeros.T)
    assert torch.allclose(ours.dequantize(), linear.weight.float(), atol=1e-4)


def test_gptq_unpacks_what_autogptq_packed_with_scattered_groups() -> None:
    out_features, in_features, size = 32, 256, 64
    with revived():
        from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

        scales = torch.rand(out_features, in_features // size) * 0.01 + 0.001
        zeros, wanted = codes(out_features, in_features // size, 0).clamp(min=1), codes(out_features, in_features, 1)
        groups = torch.randperm(in_features, generator=torch.Generator().manual_seed(2)) // size
        linear = torch.nn.Linear(in_features, out_features, bias=False)
        linear.weight.data = (wanted - zeros[:, groups]) * scales[:, groups]
        layer = QuantLinear(4, size, in_features, out_features, bias=False)
        layer.pack(linear, scales, zeros, g_idx=groups.int())
    stored = {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales, "g_idx": layer.g_idx}
    ours = gptq.unpack(stored)
    assert torch.equal(ours.codes.long(), wanted)
    assert torch.equal(ours.zeros.long(), zeros)
    assert torch.allclose(ours.dequantize(), linear.weight, atol=1e-3)
    second = dict(stored, qzeros=stored["qzeros"] + 0x11111111)
    assert torch.equal(gptq.unpack(second, version=2).zeros, ours.zeros)
