"""What lies behind a model's last block makes the model's own logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.walk.skeleton import Skeleton
from qlab.walk.tail import Tail


@torch.no_grad()
def test_a_window_and_pieces_of_it_get_the_models_logits(tiny: OpenedModel, calibration: Tensor) -> None:
    model: Any = load(tiny, torch.float32)
    caught = list[Tensor]()
    last = model.get_submodule(tiny.layout.block(tiny.layout.count - 1).removesuffix("."))
    last.register_forward_hook(lambda _, __, output: caught.append(output[0] if isinstance(output, tuple) else output))
    expected = model(input_ids=calibration[:1], use_cache=False).logits[0]
    skeleton = Skeleton(tiny, "cpu")
    tail, block = Tail(skeleton), skeleton.block(0, calibration.shape[1])
    hook = block.module.register_forward_hook(tail.note)
    block.forward(caught[0])
    hook.remove()
    tail.fill()
    torch.testing.assert_close(tail.logits(caught[0]), expected)
    pieces = torch.cat([tail.logits(part) for part in caught[0].split(7, 1)])
    torch.testing.assert_close(pieces, expected)
