"""The bytes of K-quant superblocks, as ggml-common.h lays them out (block_q4_K, block_q6_K)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qlab.methods.kquants import Superblocks


def to_bytes(tensor: Superblocks) -> np.ndarray:
    """uint8 [out, bytes a row], ready for a GGUF file."""
    data = q4_k_bytes(tensor) if tensor.kind == "Q4_K" else q6_k_bytes(tensor)
    return data.view(tensor.shape[0], -1).numpy()


def fp16_bytes(values: Tensor) -> Tensor:
    return values.half().view(torch.uint8).view(-1, 2)


def q4_k_bytes(tensor: Superblocks) -> Tensor:
    """d, dmin, 12 bytes of 6-bit scales and mins, 128 bytes of nibbles: 144 bytes a superblock."""
    sc, m = tensor.scales.to(torch.uint8), tensor.mins.to(torch.uint8)
    # The first four pairs stand whole in the low six bits; the top two bits above them belong to the last four.
    packed = torch.cat(
        [sc[:, :4] | (sc[:, 4:] >> 4 << 6), m[:, :4] | (m[:, 4:] >> 4 << 6), (sc[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)], dim=1
    )
    pairs = tensor.codes.view(-1, 4, 2, 32)  # 64 weights share 32 bytes: the first half low, the second high
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return torch.cat([fp16_bytes(tensor.d), fp16_bytes(tensor.dmin), packed, nibbles], dim=1)


def q6_k_bytes(tensor: Superblocks) -> Tensor:
    """128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, d: 210 bytes a superblock."""
    quarters = tensor.codes.view(-1, 2, 4, 32)  # of each half superblock
    low = torch.cat([(quarters[:, :, i] & 15) | ((quarters[:, :, i + 2] & 15) << 4) for i in range(2)], dim=-1)
    high = sum(((quarters[:, :, i] >> 4) << (2 * i) for i in range(4)), torch.zeros(1, dtype=torch.uint8))
    scales = tensor.scales.to(torch.int8).view(torch.uint8)
    return torch.cat([low.reshape(-1, 128), high.reshape(-1, 64), scales, fp16_bytes(tensor.d)], dim=1)
