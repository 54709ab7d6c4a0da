"""FP8 (E4M3): floats of 8 bits, 4 of them exponent and 3 mantissa, times a scale that a row or a block of the weights shares.

A float is rounded by a share of itself, at most 1/16, where an integer is rounded by a share of the largest number beside it. So channels
of unequal size cost little, and scaling them (AWQ, SmoothQuant) wins little. With 3 bits of mantissa the share is large, though: where
channels are equal, integers of 8 bits are nearer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 448.0  # of E4M3
SMALLEST_SCALE = 1 / (LARGEST * 512)  # of activations, in vLLM: vllm.model_executor.layers.quantization.input_quant_fp8
Block = tuple[int, int]
"""Rows and columns that share a scale."""


@dataclass(frozen=True)
class ScaledFloats:
    """A quantized matrix: `codes` float8_e4m3fn [out, in], `scales` float32 [⌈out/rows⌉, ⌈in/columns⌉], one for each `block`."""

    codes: Tensor
    scales: Tensor
    block: Block

    def dequantize(self) -> Tensor:
        """The weights that these codes stand for: float32 [out, in]."""
        return times_scales(self.codes, self.scales, self.block)


def fp8(weight: Tensor, block: Block | None = None) -> ScaledFloats:
    """Every weight of a matrix [out, in] rounded to the nearest E4M3 number times the scale of its row, or of its `block`, that takes the
    largest weight there to 448 (compressed_tensors.quantization.utils.calculate_qparams; DeepSeek's kind has blocks of 128 x 128).
    """
    exact, block = weight.float(), block or (1, weight.shape[1])
    scales = largest_of_blocks(exact, block) / LARGEST
    scales = scales.where(scales > 0, torch.ones_like(scales))  # of zeros alone: any scale serves
    return ScaledFloats(nearest_floats(exact / spread_scales(scales, exact.shape, block)), scales, block)


def rounded_floats(inputs: Tensor, group_size: int | None = None) -> Tensor:
    """Activations [..., in] as E4M3 numbers times a scale for each token, or for each `group_size` channels of a token, in the dtype given
    (vLLM's QuantFP8, dynamic: forward_native and _quantize_group_native)."""
    width = inputs.shape[-1]
    block = (1, min(group_size or width, width))
    exact = inputs.reshape(-1, width).float()
    scales = (largest_of_blocks(exact, block) / LARGEST).clamp(min=SMALLEST_SCALE)
    rounded = times_scales(nearest_floats(exact / spread_scales(scales, exact.shape, block)), scales, block)
    return rounded.reshape(inputs.shape).to(inputs.dtype)


def floats_by_scale(inputs: Tensor, scale: Tensor) -> Tensor:
    """Activations [..., in] as E4M3 numbers times one stored `scale`, in the dtype given; what is beyond its range becomes the largest."""
    step = scale.to(inputs.device, torch.float32)
    return (nearest_floats(inputs.float() / step).float() * step).to(inputs.dtype)


def nearest_floats(numbers: Tensor) -> Tensor:
    """E4M3 numbers, ties to even; what lies beyond the largest becomes the largest."""
    return numbers.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def largest_of_blocks(matrix: Tensor, block: Block) -> Tensor:
    """The largest magnitude in each block of a matrix [rows, columns]; the last of a row or column may be a part of one."""
    rows, columns = matrix.shape
    padded = torch.nn.functional.pad(matrix.abs(), (0, -columns % block[1], 0, -rows % block[0]))
    return padded.unflatten(1, (-1, block[1])).amax(-1).unflatten(0, (-1, block[0])).amax(1)


def spread_scales(scales: Tensor, shape: torch.Size, block: Block) -> Tensor:
    """The scale of each number of a matrix, of each row where a block is as wide as the matrix, from those of blocks."""
    rows, columns = shape
    down = scales if block[0] == 1 else scales.repeat_interleave(block[0], dim=0)[:rows]
    return down if block[1] >= columns else down.repeat_interleave(block[1], dim=1)[:, :columns]


def times_scales(codes: Tensor, scales: Tensor, block: Block) -> Tensor:
    """codes · scale, float32, of matrices [..., rows, columns] or a row, with scales [..., down, across] or a single one; the last block
    of a row or column may be a part of one."""
    weight = codes.float()
    rows, columns = weight.shape[-2:] if weight.dim() > 1 else (1, len(weight))
    down, across = -(-rows // block[0]), -(-columns // block[1])
    scales = scales.reshape(*weight.shape[:-2], down, across) if scales.numel() > 1 else scales.reshape(1, 1)
    scales = scales.repeat_interleave(block[0], dim=-2)[..., :rows, :]
    whole = columns // block[1] * block[1]
    if whole:
        weight[..., :whole].unflatten(-1, (-1, block[1])).mul_(scales[..., : whole // block[1], None])
    if whole < columns:
        weight[..., whole:].mul_(scales[..., -1:])
    return weight
