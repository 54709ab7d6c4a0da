"""Memory: what an artifact takes on disk, and what the process holds that has it loaded, at rest and at its peak."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

WEIGHTS = (".safetensors", ".gguf")
SHORT = "has too little memory"  # in every message of it
PAUSE = 0.002  # seconds between two looks at a process's memory


def disk_bytes(folder: Path) -> int:
    """Bytes of the weight files in a model folder or artifact."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in WEIGHTS)


def held_by_torch() -> int:
    """What PyTorch's models take here: where there is a GPU what torch has allocated on it, else the memory of this process."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else held_here()


def held_here() -> int:
    """All that lies in this process's memory. Pages that others hold too count whole, so that nobody's coming or going changes it;
    of what was held before and after, the difference is what came in between."""
    return psutil.Process().memory_info().rss


def held_bytes(process: psutil.Process) -> int:
    """The proportional set of one process of several, whose sum is what they hold (shared pages shared out); on macOS, which counts
    none, what is its alone."""
    info = process.memory_full_info()
    return getattr(info, "pss", 0) or info.uss


def free_bytes() -> int:
    """What is free of the machine's memory."""
    return psutil.virtual_memory().available


def free_on_gpu() -> float:
    """What is free of the GPU's memory; without limit where there is none. Makes this process one that uses the GPU."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.inf


def pinned(shape: Sequence[int], dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """An empty tensor in the machine's memory that the GPU `device` copies to and from by itself; no other GPU learns of it."""
    with torch.cuda.device(device):
        return torch.empty(shape, dtype=dtype, pin_memory=True)


def no_memory(error: Exception) -> str:
    """What to say of an error that means too little memory, on a GPU or in the machine; empty of another error."""
    allocator = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w*)", str(error))
    wanted = f"{allocator[1]} more were wanted" if allocator else "more was wanted"
    remedy = "give fewer or shorter windows (--windows, --length) or a --max-memory"
    if isinstance(error, torch.OutOfMemoryError):
        number = re.search(r"GPU (\d+) has", str(error))
        free, whole = torch.cuda.mem_get_info(int(number[1]) if number else None)
        found = f"{wanted}, {free / 1e9:.2f} of {whole / 1e9:.2f} GB are free"
        return f"the GPU {SHORT}: {found}. See with nvidia-smi who uses it; {remedy}, or --device cpu"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)):
        return f"the machine {SHORT}: {wanted}, {free_bytes() / 1e9:.2f} GB are free. Close programs, or {remedy}"
    return ""


def peak_during(work: Callable[[], object], held: Callable[[], int]) -> int:
    """The most that `held` counts while `work` runs: looked at every few milliseconds, in a run that is not timed.

    On a GPU torch keeps the peak itself, exactly.
    """
    if held is held_by_torch and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    peak, done = held(), threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(PAUSE):
            peak = max(peak, held())

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        work()
    finally:
        done.set()
        watch.join()
    return max(peak, held())
