"""llama.cpp's block formats. K-quants: superblocks of 256 weights, whose sub-blocks carry integer scales under one FP16 scale.

Q4_K: 8 sub-blocks of 32, x ≈ d·sc·q − dmin·m with q of 4 bits, sc and m of 6: 4.5 bits a weight.
Q6_K: 16 sub-blocks of 16, x ≈ d·sc·q with q of 6 bits about zero and sc of 8: 6.5625 bits a weight.
Q5_K is Q4_K with q of 5 bits; Q2_K has 16 sub-blocks, q of 2 bits, sc and m of 4; Q3_K is Q6_K with q of 3 bits, sc of 6.
Q8_0, Q4_0, Q5_0, Q5_1: blocks of 32 under one FP16 scale, for rows that 256 does not divide and for eight bits.
IQ4_NL is such a block whose 16 codes stand for values that lie closer about zero, as weights do: x ≈ d·v[q]; IQ4_XS has 8 sub-blocks of
these with sc of 6 bits, x ≈ d·sc·v[q]: 4.5 and 4.25 bits a weight.

The bytes are another module's business (qlab/formats/gguf/block_bytes.py), the search kquant_search's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.methods.grid import Points
from qlab.methods.kquants.fit import codes_on, error_weights, fit, round_plainly, store_codes
from qlab.methods.kquants.kinds import KINDS, Kind
from qlab.methods.kquants.search import search_affine
from qlab.support.errors import UserError
from qlab.support.threads import half_the_threads

SUPERBLOCK = 256
LARGEST = 65504.0  # of FP16
# Weights encoded at a time: on a CPU as many as its cache holds with their temporaries, elsewhere enough to fill the device.
CHUNK, DEVICE_CHUNK = 1 << 17, 1 << 24


@dataclass(frozen=True)
class Superblocks:
    """A quantized tensor of n = out · in / block blocks (of 256, or of 32 with a single sub-block).

    `codes` uint8 [n, sub-blocks, size] (grids without minimum: offset by their middle), `scales` and `mins` int16
    [n, sub-blocks] (mins zero for grids without), `d` and `dmin` float32 [n] holding FP16 values.
    """

    kind: str
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor
    mins: Tensor
    d: Tensor
    dmin: Tensor

    def dequantize(self) -> Tensor:
        """The weights that these blocks stand for: float32 [out, in]."""
        kind = KINDS[self.kind]
        values = kind.counted(self.codes)
        values.mul_((self.d[:, None] * self.scales)[..., None])
        if kind.affine:
            values.sub_((self.dmin[:, None] * self.mins)[..., None])
        return values.view(self.shape)

    @property
    def points(self) -> Points:
        """The values that the codes [out, in] may stand for; a sub-block is a group."""
        kind, rows = KINDS[self.kind], self.shape[0]
        step = (self.d[:, None] * self.scales).view(rows, -1)
        if kind.book:
            return Points(step, torch.zeros_like(step), kind.levels, kind.book)
        offset = -(self.dmin[:, None] * self.mins).view(rows, -1) if kind.affine else -kind.middle * step
        return Points(step, offset, kind.levels)

    @property
    def bits_per_weight(self) -> float:
        return KINDS[self.kind].bytes * 8 / KINDS[self.kind].block


def encode(weight: Tensor, kind: str, importance: Tensor | None = None) -> Superblocks:
    """Encode a weight [out, in] in the format `kind`, a key of KINDS (ggml-quants.c, quantize_row_*_ref and _impl).

    `importance` [in], the mean squared activation of each input channel (llama.cpp's imatrix), makes errors on strong
    channels count more; Q8_0 does without. Memory beyond the result is bounded, whatever the weight's size.

    Raises:
        UserError: an unknown kind, a row that its blocks do not divide, weights not finite or beyond FP16's range, an
            importance of another length, negative or not finite.
    """
    layout = layout_of(weight, kind)
    rows, columns = weight.shape
    channels = None if importance is None or kind == "Q8_0" else channel_weights(importance, columns, layout.size).to(weight.device)
    n, subs, device = weight.numel() // layout.block, layout.block // layout.size, weight.device
    codes = torch.empty(n, subs, layout.size, dtype=torch.uint8, device=device)
    scales, mins = torch.empty(2, n, subs, dtype=torch.int16, device=device)
    d, dmin = torch.empty(2, n, device=device)
    room = torch.empty(0, device=device)
    # Results are made outside and written inside: what leaves inference mode must be ordinary tensors.
    with torch.inference_mode(), half_the_threads():
        for start, stop in row_chunks(rows, columns, device):
            m = (stop - start) * columns // layout.size
            if room.shape[-1] != m:
                room = torch.empty(6, layout.size, m, device=device)
            x = as_columns(weight[start:stop], room[0], room[1])
            check_range(x)
            if layout.searched or channels is not None:
                repeated = None if channels is None else channels.repeat(1, stop - start)
                weights = error_weights(x, layout, repeated, columns, room[1], room[2])
                grids = fit(x, layout, weights, layout.trials(channels is not None), room[2:])
                chunk = codes_on(x, layout, grids, room[2])
            else:
                chunk, grids = round_plainly(x, layout, room[1], room[2])
            at = slice(start * columns // layout.block, stop * columns // layout.block)
            store_codes(chunk, layout, room[3], codes[at])
            scales[at], mins[at], d[at], dmin[at] = grids
    return Superblocks(kind, (rows, columns), codes, scales, mins, d, dmin)


def single_scale(weight: Tensor) -> Tensor:
    """The negative control: 4 bits with one scale and minimum for all 256 weights; dequantized, float32 [out, in].

    Raises:
        UserError: a row is no multiple of 256.
    """
    q4 = layout_of(weight, "Q4_K")
    x = weight.float().reshape(-1, SUPERBLOCK).T.contiguous()
    room = x.new_empty(5, *x.shape)
    scale, offset = search_affine(x, error_weights(x, q4, None, SUPERBLOCK, room[0], room[1]), q4.levels, q4.trials(False), room[1:])
    step = scale.clamp(min=1e-30)
    return (((x - offset) / step).round_().clamp_(0, q4.levels) * step + offset).T.reshape(weight.shape)


def layout_of(weight: Tensor, kind: str) -> Kind:
    """The numbers of the format, once it is known to fit the weight.

    Raises:
        UserError: an unknown kind, a weight that is no matrix, or a row that its blocks do not divide.
    """
    if kind not in KINDS:
        raise UserError(f"no encoder for {kind!r}: expected one of {', '.join(KINDS)}")
    if weight.ndim != 2:
        raise UserError(f"{kind} encodes matrices [out, in], not a tensor of shape {list(weight.shape)}")
    block = KINDS[kind].block
    if weight.shape[1] % block:
        raise UserError(f"{kind} needs rows of a multiple of {block} weights, not {weight.shape[1]}")
    return KINDS[kind]


def channel_weights(importance: Tensor, columns: int, size: int) -> Tensor:
    """One row's importance [in] over its mean, as columns of sub-blocks: float32 [size, in / size].

    Raises:
        UserError: another length, or values that are negative or not finite.
    """
    if importance.shape != (columns,):
        raise UserError(f"importance needs one value for each of the {columns} input channels, not a shape of {list(importance.shape)}")
    values = importance.float()
    if not bool((values >= 0).all() & values.isfinite().all()):
        raise UserError("importance is a mean of squares, but holds negative, NaN or infinite values: check the calibration run")
    # A channel that the calibration text left silent may speak in another: a millionth of the mean keeps its grid sensible.
    return (values / values.mean().clamp(min=1e-30)).clamp_(min=1e-6).view(-1, size).T.contiguous()


def check_range(x: Tensor) -> None:
    """Refuse what no FP16 scale can express.

    Raises:
        UserError: NaN, an infinite value, or one beyond FP16's range.
    """
    low, high = x.aminmax()
    if not bool((low >= -LARGEST) & (high <= LARGEST)):
        finite = bool(x.isfinite().all())
        found = f"weights as large as {float(torch.maximum(high, -low)):.3g}" if finite else "NaN or infinite weights"
        raise UserError(f"cannot encode {found}: expected finite values within ±{LARGEST:g}; check the checkpoint")


def row_chunks(rows: int, columns: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """First row and end of each chunk of whole rows."""
    step = max(1, (CHUNK if device.type == "cpu" else DEVICE_CHUNK) // columns)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def as_columns(values: Tensor, out: Tensor, stage: Tensor) -> Tensor:
    """Consecutive blocks as the columns of `out` [size, m], by way of `stage`, which is as large: any dtype → float32.

    Converting first and turning then is many times faster than both at once.
    """
    size = out.shape[0]
    return out.copy_(stage.view(-1, size).copy_(values.reshape(-1, size)).T)
