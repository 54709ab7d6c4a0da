"""Memory bandwidth, measured: the ceiling on generation, since every token needs all weights once.

A small model may lie in the processor's cache, where reading is faster than from memory. So as many bytes are read here, over
and over, as a step reads: the ceiling then is that of this model on this machine, wherever its weights come to lie.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

TRIALS = 12  # a busy moment must not lower a ceiling
TRIAL_SECONDS = 0.05
SIZES = (1 << 20, 4 << 30)  # bytes; less is timed too roughly, more tells nothing new


def read_bandwidth(size: int, device: str = "cpu") -> float:
    """Bytes a second at which PyTorch reads `size` bytes again and again on `device`: the best of several trials.

    The product of a matrix and a vector is what generation consists of, and reads at least as fast as a sum does.
    """
    count = min(max(size, SIZES[0]), SIZES[1]) // 4
    columns = 1024
    matrix = torch.ones(max(1, count // columns), columns, device=device)
    vector = torch.ones(columns, device=device)
    best = 0.0
    for _ in range(TRIALS):
        passes, started = 0, time.perf_counter()
        while passes == 0 or time.perf_counter() - started < TRIAL_SECONDS:
            for _ in range(8 if matrix.is_cuda else 1):  # a kernel is sent off faster than it is done
                torch.mv(matrix, vector)
                passes += 1
            synchronize(device)
        best = max(best, passes * matrix.nbytes / (time.perf_counter() - started))
    return best


def read_bandwidths(wanted: Sequence[tuple[int, str]]) -> list[float]:
    """read_bandwidth of each (size, device); what is wanted twice, as one format in two runtimes is, is measured once."""
    measured = {one: read_bandwidth(*one) for one in dict.fromkeys(wanted)}
    return [measured[one] for one in wanted]


def synchronize(device: str) -> None:
    """Wait for the device: CUDA returns before the work is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
