"""A model computed from one block on: the predictions of the whole, to the bit, and none where its blocks read more than hidden states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qlab.evaluate.damage.resumed import FromBlock
from qlab.evaluate.kept import kept_logits
from qlab.models.loading import load
from qlab.models.opening import OpenedModel

NAMES = ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.o_proj"]


def test_a_changed_block_gives_what_the_whole_model_gives(tiny: OpenedModel, calibration: Tensor) -> None:
    model, windows = load(tiny), calibration[:3]
    resumed = FromBlock(model, NAMES, windows, kept_logits(model, windows.split(1)))
    assert [resumed.block_of(names) for names in (NAMES, NAMES[:1])] == [0, 1]
    resumed.advance(1)
    assert resumed.first == 1
    ran = list[int]()
    hooks = [block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index)) for index, block in enumerate(model.model.layers)]
    model.get_submodule(NAMES[0]).weight.data *= 1.5  # type: ignore[operator, union-attr]
    found = list(resumed)
    assert ran == [1, 1, 1]
    assert all(map(torch.equal, found, kept_logits(model, windows.split(1))))
    for hook in hooks:
        hook.remove()
    model.get_submodule(NAMES[1]).weight.data *= 1.5  # type: ignore[operator, union-attr]
    assert not torch.equal(resumed[0], kept_logits(model, windows.split(1))[0])  # the control: a block that is not computed again
    resumed.advance(0)  # the model is another than at first: every block is computed from here on
    assert torch.equal(resumed[0], kept_logits(model, windows.split(1))[0])


def test_blocks_that_read_more_than_hidden_states_are_seen(tiny: OpenedModel, calibration: Tensor) -> None:
    model = load(tiny)
    first, second = model.model.layers
    kept = dict[str, Tensor]()

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        kept["queries"] = output

    first.self_attn.q_proj.register_forward_hook(keep)
    second.mlp.register_forward_hook(lambda *found: found[2] + kept.pop("queries"))
    expected = kept_logits(model, calibration[:2].split(1))
    resumed = FromBlock(model, NAMES, calibration[:2], expected)
    resumed.advance(1)
    assert resumed.first == 0
    assert torch.equal(resumed[1], expected[1])
    assert all("forward" not in vars(block) for block in (first, second))
