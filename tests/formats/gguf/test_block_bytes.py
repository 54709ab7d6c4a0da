"""Bytes of blocks decoded some rows at a time, by several threads: what gguf-py makes of all at once."""

from __future__ import annotations

import gguf
import pytest
import torch

from qlab.formats.gguf import block_bytes


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_K", "Q6_K", "IQ4_XS"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_bits_are_gguf_py_s(kind: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_bytes, "AT_ONCE", 4 * 512)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    qtype = gguf.GGMLQuantizationType[kind]
    weights, size = gguf.GGML_QUANT_SIZES[qtype]
    stored = torch.randint(256, (3, 7, 512 // weights * size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = block_bytes.from_bytes(stored, kind)
    expected = torch.from_numpy(gguf.quants.dequantize(stored.numpy(), qtype))
    assert found.shape == (3, 7, 512)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))  # NaN too
    (row,) = block_bytes.from_bytes(stored[:1, 0], kind)
    assert torch.equal(row.view(torch.int32), expected[0, 0].view(torch.int32))


def test_what_has_no_rows_has_no_weights() -> None:
    assert block_bytes.from_bytes(torch.empty(0, 34, dtype=torch.uint8), "Q8_0").shape == (0, 32)
