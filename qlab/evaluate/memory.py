"""Memory: what an artifact takes on disk, and what the process holds that has it loaded."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

WEIGHTS = (".safetensors", ".gguf")


def disk_bytes(folder: Path) -> int:
    """Bytes of the weight files in a model folder or artifact."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in WEIGHTS)


def held_bytes() -> int:
    """Memory of this process: where there is a GPU what torch has allocated on it, else the proportional set (shared pages shared out)."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    info = psutil.Process().memory_full_info()
    return getattr(info, "pss", 0) or info.uss  # macOS has no proportional set
