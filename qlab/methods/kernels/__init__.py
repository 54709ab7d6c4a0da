"""Kernels, in Triton for GPUs and compiled by numba for CPUs, where a method makes some ten small operations for each column or trial.

A GPU waits for Python at each of them; a CPU goes through its memory once for each of them. Each module in `gpu` and `cpu` does what a
plain function of qlab.methods does, by the same arithmetic, but all operations in one. The plain function stays the definition; tests hold
one against the other. Sums are added up in another order, and on a GPU products of matrices between two kernels are TF32's, so a weight
that lies half-way between two codes may get the other one.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from qlab.support.precision import tf32

OLDEST = (8, 0)  # compute capability: Ampere. Kernels multiply in TF32, which Turing has no instructions for.
TRIANGLE = 1024  # rows of a triangular matrix that is inverted in one piece; products are faster beyond


def run_on(device: torch.device) -> bool:
    """Whether kernels of `gpu` compute on `device`."""
    return device.type == "cuda" and not obstacle(device.index)


def found(name: str, device: torch.device) -> ModuleType | None:
    """The module of this name whose kernels compute on `device`; None where the plain function does."""
    room = "gpu" if run_on(device) else "cpu" if device.type == "cpu" and compiled() else ""
    there = f"{__name__}.{room}.{name}"
    return import_module(there) if room and find_spec(there) else None


@cache
def compiled() -> bool:
    """Whether numba compiles kernels for this machine's CPU. If it does not, that is said once, as a warning."""
    try:
        import_module(f"{__name__}.cpu.trial")
    except Exception as error:  # it is not there, or does not fit the other libraries: the plain functions do not need it
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[-1]}"
        warnings.warn(f"GPTQ and AWQ compute without kernels, which takes longer: numba does not compile ({reason})", stacklevel=3)
        return False
    return True


def width(size: int, widest: int) -> int:
    """Columns of a block, at most `widest`: a divisor of the group size, so that a group begins where a block does."""
    return next(number for number in range(min(size, widest), 0, -1) if size % number == 0)


def quick_products(device: torch.device) -> AbstractContextManager[None]:
    """A context in which FP32 matrices are multiplied as TF32, numbers of 11 significant bits, where kernels run on `device`.

    For what errors and changes of codes do to other columns: an error of 5e-4 in that moves a code which lies half-way
    (`make bench-kernels` prints how many, and what they cost).
    """
    return tf32() if run_on(device) else nullcontext()


@cache
def obstacle(index: int | None) -> str:
    """Why kernels cannot run on CUDA's device `index`, the current one for None; empty if they can. Said once, as a warning, too.

    Triton comes with PyTorch on Linux. It compiles for the GPU by itself, but needs a C compiler and Python's headers for the launch.
    """
    if torch.version.cuda is None:
        return _warned("they are written for NVIDIA's GPUs")
    if torch.cuda.get_device_capability(index) < OLDEST:
        return _warned("they need a GPU of the Ampere generation or later")
    if find_spec("triton") is None:
        return _warned("Triton is not installed")
    try:
        import_module("qlab.methods.kernels.gpu.trial").compile_and_run(torch.device("cuda" if index is None else f"cuda:{index}"))
    except Exception as error:  # whatever is amiss with compilers and drivers: the plain functions need none of them
        return _warned(f"Triton cannot compile here ({type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[-1]})")
    return ""


def _warned(reason: str) -> str:
    warnings.warn(f"GPTQ and settling compute without kernels, which takes ten times as long and more: {reason}", stacklevel=3)
    return reason
