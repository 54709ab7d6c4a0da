"""The bytes of llama.cpp's blocks, as ggml-common.h lays them out (block_q4_K, block_q6_K, block_q8_0 and their kin)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import torch
from torch import Tensor

from qlab.methods.kquants.blocks import Superblocks

AT_ONCE = 1 << 18  # weights that a thread decodes at a time: a processor's cache holds them with their temporaries


def to_bytes(tensor: Superblocks) -> np.ndarray:
    """uint8 [out, bytes a row], ready for a GGUF file."""
    return byte_tensor(tensor).cpu().numpy()


def byte_tensor(tensor: Superblocks) -> Tensor:
    """uint8 [out, bytes a row], where the tensor is."""
    return LAYOUTS[tensor.kind](tensor).view(tensor.shape[0], -1)


def from_bytes(stored: Tensor, kind: str) -> Tensor:
    """The weights float32 [..., in] of a type's bytes, uint8 [..., bytes a row] on the CPU, by as many threads as PyTorch has.

    By gguf-py: its decoder is not ours, so it judges our encoder.
    """
    qtype = gguf.GGMLQuantizationType[kind]
    weights, size = gguf.GGML_QUANT_SIZES[qtype]
    rows = stored.numpy().reshape(-1, stored.shape[-1])
    found = np.empty((len(rows), stored.shape[-1] // size * weights), np.float32)
    step = max(1, AT_ONCE // found.shape[1])

    def decode(first: int) -> None:
        found[first : first + step] = gguf.quants.dequantize(rows[first : first + step], qtype)

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in threads.map(decode, range(0, len(rows), step)):
            pass
    return torch.from_numpy(found).view(*stored.shape[:-1], found.shape[1])


def q8_0_bytes(tensor: Superblocks) -> Tensor:
    """d, 32 signed codes: 34 bytes a block."""
    return torch.cat([fp16_bytes(tensor.d), tensor.codes[:, 0] ^ 128], dim=1)  # two's complement of the code less 128


def q4_0_bytes(tensor: Superblocks) -> Tensor:
    """d, 16 bytes of nibbles: 18 bytes a block; IQ4_NL's too."""
    return torch.cat([fp16_bytes(tensor.d), nibbles(tensor.codes, 16)], dim=1)


def q5_0_bytes(tensor: Superblocks) -> Tensor:
    """d, 4 bytes of fifth bits, 16 of nibbles: 22 bytes a block."""
    return torch.cat([fp16_bytes(tensor.d), fifth_bits(tensor), nibbles(tensor.codes & 15, 16)], dim=1)


def q5_1_bytes(tensor: Superblocks) -> Tensor:
    """d, the minimum, 4 bytes of fifth bits, 16 of nibbles: 24 bytes a block."""
    return torch.cat([fp16_bytes(tensor.d), fp16_bytes(-tensor.dmin), fifth_bits(tensor), nibbles(tensor.codes & 15, 16)], dim=1)


def q2_k_bytes(tensor: Superblocks) -> Tensor:
    """16 bytes of 4-bit scales and mins, 64 of codes, d, dmin: 84 bytes a superblock."""
    scales = tensor.scales.to(torch.uint8) | tensor.mins.to(torch.uint8) << 4
    return torch.cat([scales, bit_pairs(tensor.codes), fp16_bytes(tensor.d), fp16_bytes(tensor.dmin)], dim=1)


def q3_k_bytes(tensor: Superblocks) -> Tensor:
    """32 bytes of high bits, 64 of low bit pairs, 12 of 6-bit scales, d: 110 bytes a superblock."""
    scales = (tensor.scales + 32).to(torch.uint8)
    low = (scales[:, :8] & 15) | (scales[:, 8:] & 15) << 4
    high = gather_bits((scales >> 4).view(-1, 4, 4), 2)
    return torch.cat([high_bits(tensor.codes, 2), bit_pairs(tensor.codes & 3), low, high, fp16_bytes(tensor.d)], dim=1)


def q4_k_bytes(tensor: Superblocks) -> Tensor:
    """d, dmin, 12 bytes of 6-bit scales and mins, 128 bytes of nibbles: 144 bytes a superblock."""
    return torch.cat([fp16_bytes(tensor.d), fp16_bytes(tensor.dmin), scales_and_mins(tensor), nibbles(tensor.codes, 32)], dim=1)


def q5_k_bytes(tensor: Superblocks) -> Tensor:
    """As Q4_K, with 32 bytes of fifth bits before the nibbles: 176 bytes a superblock."""
    head = [fp16_bytes(tensor.d), fp16_bytes(tensor.dmin), scales_and_mins(tensor)]
    return torch.cat([*head, high_bits(tensor.codes, 4), nibbles(tensor.codes & 15, 32)], dim=1)


def q6_k_bytes(tensor: Superblocks) -> Tensor:
    """128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, d: 210 bytes a superblock."""
    quarters = tensor.codes.view(-1, 2, 4, 32)  # of each half superblock
    low = (quarters[:, :, :2] & 15) | (quarters[:, :, 2:] & 15) << 4
    scales = tensor.scales.to(torch.int8).view(torch.uint8)
    return torch.cat([low.reshape(-1, 128), bit_pairs(tensor.codes >> 4), scales, fp16_bytes(tensor.d)], dim=1)


def iq4_xs_bytes(tensor: Superblocks) -> Tensor:
    """d, 2 bytes of the scales' high bit pairs, 4 of their low nibbles, 128 of nibbles: 136 bytes a superblock."""
    scales = (tensor.scales + 32).to(torch.uint8)
    high = gather_bits((scales >> 4).view(-1, 2, 4).transpose(1, 2), 2)
    return torch.cat([fp16_bytes(tensor.d), high, nibbles(scales & 15, 1), nibbles(tensor.codes, 16)], dim=1)


def fp16_bytes(values: Tensor) -> Tensor:
    """float32 [n] → uint8 [n, 2]."""
    return values.half().view(torch.uint8).view(-1, 2)


def nibbles(codes: Tensor, run: int) -> Tensor:
    """Two runs of `run` 4-bit codes share `run` bytes, the first in the low half: n blocks → [n, block / 2]."""
    pairs = codes.view(codes.shape[0], -1, 2, run)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)


def bit_pairs(codes: Tensor) -> Tensor:
    """2-bit codes; the four runs of 32 in each half superblock share 32 bytes, the first lowest: n superblocks → [n, 64]."""
    return gather_bits(codes.view(-1, 2, 4, 32).flatten(0, 1), 2).view(-1, 64)


def high_bits(codes: Tensor, place: int) -> Tensor:
    """Bit `place` of the codes; the eight runs of 32 share 32 bytes, the first lowest: n superblocks → [n, 32]."""
    return gather_bits((codes.view(-1, 8, 32) >> place) & 1, 1)


def fifth_bits(tensor: Superblocks) -> Tensor:
    """Bit 4 of a block's 32 codes, lowest first: n blocks → [n, 4]."""
    return gather_bits((tensor.codes.view(-1, 4, 8) >> 4).transpose(1, 2), 1)


def gather_bits(values: Tensor, width: int) -> Tensor:
    """[n, k, bytes] of `width` bits each → [n, bytes], the first of the k lowest."""
    packed = values[:, 0].clone()
    for i in range(1, values.shape[1]):
        packed |= values[:, i] << (width * i)
    return packed


def scales_and_mins(tensor: Superblocks) -> Tensor:
    """Eight 6-bit scales and mins: [n, 12] (ggml-quants.c, get_scale_min_k4)."""
    sc, m = tensor.scales.to(torch.uint8), tensor.mins.to(torch.uint8)
    # The first four pairs stand whole in the low six bits; the top two bits above them belong to the last four.
    return torch.cat([sc[:, :4] | sc[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, (sc[:, 4:] & 15) | (m[:, 4:] & 15) << 4], dim=1)


LAYOUTS = {
    "Q8_0": q8_0_bytes, "Q4_0": q4_0_bytes, "Q5_0": q5_0_bytes, "Q5_1": q5_1_bytes, "Q2_K": q2_k_bytes,
    "Q3_K": q3_k_bytes, "Q4_K": q4_k_bytes, "Q5_K": q5_k_bytes, "Q6_K": q6_k_bytes,
    "IQ4_NL": q4_0_bytes, "IQ4_XS": iq4_xs_bytes,
}  # fmt: skip
