"""Kernels for GPUs, in Triton: where a method goes from column to column, some ten small operations each, the GPU waits for Python.

Each module here does what a plain function of qlab.methods does, by the same arithmetic, in one launch. The plain function stays the
definition, and the only path on CPUs; tests hold one against the other. Sums are added up in another order, so a weight that lies
half-way between two codes may get the other one.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

OLDEST = (8, 0)  # compute capability: Ampere. Kernels multiply in TF32, which Turing has no instructions for.

TRIANGLE = 1024  # rows of a triangular matrix that is inverted in one piece; products are faster beyond


def run_on(device: torch.device) -> bool:
    """Whether kernels compute on `device`, rather than the plain functions: the one place that decides."""
    return device.type == "cuda" and capable(device.index)


@cache
def capable(index: int | None) -> bool:
    """Whether CUDA's device `index` can run them: an NVIDIA GPU that is new enough, and Triton, which comes with PyTorch on Linux."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability(index) >= OLDEST and find_spec("triton") is not None
