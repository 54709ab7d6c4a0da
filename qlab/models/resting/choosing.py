"""How a model is held that dozens of experiments are made with: whole in FP32, or at rest.

`held` decides, from sizes alone. The figures are the same to the bit whatever it decides; what changes is memory and time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import psutil
import torch

from qlab.models.opening import OpenedModel
from qlab.models.resting.work import EXPERIMENTS

WHOLE, ON_DEVICE, IN_MEMORY = "whole", "at rest on the device", "at rest in memory"
COPIES = 4.0  # of a model in FP32 that an experiment may hold beside others: changed, judged, trained with its gradients
HALF = (torch.float16, torch.bfloat16)
SPARE = 1.3  # a margin: all processes held 1.1 to 2.6 GB more of an H200 than tensors took, what PyTorch keeps and what others have
LENGTH, TOKENS = 512, 1024  # of a window that is predicted, and that are trained on at a time, where nobody says


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model: in FP32 (`single`), as it rests (`stored`), and of what experiments take beside it at their peak (`work`)."""

    single: float
    stored: float
    work: float


def held(sizes: Sizes, room: float, on_gpu: bool) -> str:
    """WHOLE in FP32 where `room` (free bytes of the device) has COPIES of it; else ON_DEVICE, its matrices in half precision; on a GPU
    that has not even room for that and the work, IN_MEMORY: those of the machine, and brought one at a time."""
    if COPIES * sizes.single <= room:
        return WHOLE
    return IN_MEMORY if on_gpu and sizes.stored + sizes.work > room else ON_DEVICE


def held_on(source: OpenedModel, device: str) -> str:
    """How the model is held on this machine's `device`, with what is free there now."""
    return held(sizes_of(source), free_on(device), torch.device(device).type == "cuda")


def free_on(device: str) -> float:
    """Free bytes of a device's memory, those counted that this process keeps for itself without need."""
    if torch.device(device).type != "cuda":
        return float(psutil.virtual_memory().available)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept)


def sizes_of(source: OpenedModel) -> Sizes:
    """The sizes of a model from the shapes of its tensors and how they are stored."""
    layout = source.layout
    return Sizes(4.0 * layout.weights, resting_bytes(source), SPARE * max(of(layout, LENGTH, TOKENS) for of in EXPERIMENTS))


def resting_bytes(source: OpenedModel) -> float:
    """Bytes of a model at rest: its matrices as they are stored, where that is half precision, all else in FP32."""
    layout = source.layout
    return sum((2.0 if len(shape) == 2 and in_half(source, name) else 4.0) * prod(shape) for name, shape in layout.shapes.items())


def in_half(source: OpenedModel, name: str) -> bool:
    """Whether a tensor is stored in half precision. What is decoded from fewer bits is FP32, and so is what is counted of a checkpoint that
    was rounded before, though a lesson may find half of that in the plain copy that it makes."""
    return source.on_paper or source.checkpoint.dtype_of(name) in HALF
