"""From an encoded GGUF tensor back to weights, by gguf-py: its decoder is not ours, so it judges our encoder."""

from __future__ import annotations

import gguf
import torch
from torch import Tensor


def decode(stored: dict[str, Tensor]) -> Tensor:
    """The weights, float32, of one tensor that encode_tensors returned; query and key rows stay in llama.cpp's order."""
    ((key, tensor),) = stored.items()
    kind = key.partition(":")[0]
    if tensor.is_floating_point():
        return tensor.float()
    return torch.from_numpy(gguf.quants.dequantize(tensor.cpu().numpy(), gguf.GGMLQuantizationType[kind]))
