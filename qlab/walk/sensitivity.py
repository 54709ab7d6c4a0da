"""How far an error of a block's output moves the model's predictions.

KL(p‖p′) of two predictions whose logits differ by δ is δᵀ·F·δ / 2 to second order, F = diag(p) − p·pᵀ the Fisher matrix of softmax. A
random u with the covariance F, led back through the head and the blocks by the chain rule, is a gradient g at each block's output. An
error e there costs eᵀ·M·e, M the mean of g·gᵀ over some tokens. So M knows what later blocks make of an error. Fisher
matrices by drawn gradients are K-FAC's (Martens and Grosse 2015, section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from qlab.models.opening import OpenedModel
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.support.finite import all_finite
from qlab.support.precision import quick_products
from qlab.support.processes.process import trim_heap
from qlab.walk.skeleton import Skeleton
from qlab.walk.state.activations import Activations
from qlab.walk.tail import Tail

TOKENS = 2048  # whose gradients are taken, evenly over the calibration text; in a trial 16 times as many changed KL by 1 %
AT_ONCE = 64  # tokens whose logits are there at a time: a vocabulary may have 256,000


def metric_of(gradients: Activations, device: torch.device) -> Tensor:
    """M float32 [hidden, hidden] of a block's gradients, its mean diagonal 1.

    Raises:
        UserError: a gradient is not finite.
    """
    metric = torch.zeros(gradients.shape[2], gradients.shape[2], device=device)
    for part in gradients.batches(1):
        rows = part[0].to(device)
        metric.addmm_(rows.T, rows)
    if not all_finite(metric):
        raise UserError(f"{gradients.path.stem} are NaN or infinite: the model overflows on this text; calibrate with another one")
    return metric / metric.diagonal().mean().clamp(min=1e-30)


def sensed_windows(count: int, length: int) -> int:
    """Of `count` calibration windows of `length` tokens, how many hold TOKENS tokens together: one at least."""
    return min(count, max(1, TOKENS // length))


def evenly(windows: Tensor) -> Tensor:
    """The calibration windows int64 [windows, length] whose gradients are taken, evenly spaced."""
    count = sensed_windows(*windows.shape)
    return windows[torch.arange(count) * len(windows) // count]


def gradients_at_blocks(source: OpenedModel, windows: Tensor, device: str, place: Callable[[int], Activations], work: Path) -> None:
    """Write the gradients at the output of every block over those of `windows` that `evenly` takes, where `place` says for the block:
    float32 [windows, length, hidden]. The model is read twice, a block at a time; what its blocks read lies below `work` meanwhile.

    Raises:
        UserError: the checkpoint is not complete or damaged.
        OSError: the disk is full or not writable.
    """
    chosen = evenly(windows)
    with closing(Skeleton(source, device)) as skeleton, Scratch(work) as folder:
        shape = (*chosen.shape, source.layout.hidden)
        inputs = [Activations(folder / f"inputs-{index}.bin", shape) for index in range(len(skeleton) + 1)]
        tail = _forward(skeleton, chosen, inputs)
        gradients = place(len(skeleton) - 1)
        gradients.write(_at_the_end(tail, inputs[-1], device))
        for index in reversed(range(1, len(skeleton))):
            before = place(index - 1)
            before.write(_led_back(skeleton, index, inputs[index], gradients))
            gradients = before
            inputs[index + 1].path.unlink()


def _forward(skeleton: Skeleton, windows: Tensor, inputs: list[Activations]) -> Tail:
    """Run the windows through all blocks, keeping what each reads; what lies behind the last."""
    tail = Tail(skeleton)
    skeleton.embed(windows, inputs[0])
    for index in range(len(skeleton)):
        skeleton.read_ahead(index)
        block = skeleton.block(index, windows.shape[1])
        skeleton.read_ahead(index + 1)
        hook = block.module.register_forward_hook(tail.note)
        with quick_products(block.device):
            inputs[index + 1].write(block.outputs(inputs[index], 1))
        hook.remove()
        skeleton.release(index)
        trim_heap()
    return tail


def _at_the_end(tail: Tail, outputs: Activations, device: str) -> Iterator[Tensor]:
    """The gradients at the last block's output, a window at a time."""
    generator = torch.Generator(device).manual_seed(0)
    tail.fill()
    for hidden in outputs.batches(1):
        yield torch.cat([_of_predictions(tail, part.to(device), generator) for part in hidden.split(AT_ONCE, 1)], 1).cpu()


@torch.enable_grad()
def _of_predictions(tail: Tail, hidden: Tensor, generator: torch.Generator) -> Tensor:
    """What a random u with the covariance F, drawn for each token, is at the hidden states [1, length, hidden]."""
    hidden = hidden.requires_grad_()
    with quick_products(hidden.device):
        logits = tail.logits(hidden * 1)
    chance = logits.detach().softmax(-1)
    signs = torch.randint(0, 2, chance.shape, generator=generator, device=chance.device, dtype=torch.int8).mul_(2).sub_(1)
    drawn = chance.sqrt() * signs
    drawn -= chance * drawn.sum(-1, keepdim=True)  # u = √p∘z − p·(√p·z), z the signs: the mean of u·uᵀ is diag(p) − p·pᵀ
    return torch.autograd.grad(logits, hidden, drawn)[0]


def _led_back(skeleton: Skeleton, index: int, inputs: Activations, gradients: Activations) -> Iterator[Tensor]:
    """The gradients at the input of block `index`, of those at its output, a window at a time."""
    skeleton.read_ahead(index)
    block = skeleton.block(index, inputs.shape[1])
    if index > 1:  # of the first block nobody asks what its input should be
        skeleton.read_ahead(index - 1)
    for hidden, gradient in zip(inputs.batches(1), gradients.batches(1)):
        with torch.enable_grad():
            hidden = hidden.to(block.device).requires_grad_()
            with quick_products(block.device):  # the way back takes each product as it was made
                output = block.forward(hidden * 1)
            found = torch.autograd.grad(output, hidden, gradient.to(block.device))[0]
        yield found.cpu()
    skeleton.release(index)
    trim_heap()
