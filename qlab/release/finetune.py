"""QLoRA: low-rank adapters trained on a model that stays in NF4 (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qlab.artifacts.placing import check_apart
from qlab.models.configuration import quantization_of
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.models.resting.choosing import WHOLE, held_on
from qlab.peers.families import check_experts
from qlab.release.tuned import Tuned
from qlab.support.disk.lock import locked
from qlab.support.disk.room import room_for
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.support.precision import quick_products
from qlab.support.progress import counter

PREFIX = "base_model.model."  # what peft puts before a layer's name


@dataclass(frozen=True)
class Training:
    """How an adapter is trained. `rank` of the two factors of W + (alpha/rank)·B·A; Adam's step `rate` is constant, as in the paper."""

    rank: int = 16
    alpha: int = 32
    rate: float = 1e-3
    steps: int = 100
    batch: int = 4
    seed: int = 0


def finetune(source: OpenedModel, windows: Tensor, out: Path, training: Training, device: str = "cpu") -> list[float]:
    """Train adapters on all linear layers of the NF4 artifact `source`, on windows, int64 [windows, length]; each step's loss.

    The folder `out` then holds the adapter as peft stores it. It appears whole or not at all.

    Raises:
        UserError: the model is not in NF4, something is at `out` or it cannot be written, another process trains there, the loss stops
            being a number, or the disk is full.
    """
    if not in_nf4(source):
        raise UserError(
            f"{source.name} is not in NF4: QLoRA trains on a model that stays in four bits; 'qlab quantize --recipe nf4' makes one"
        )
    check_apart(out, source.path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f".{out.name}.lock"), str(out)):
        if os.path.lexists(out):
            raise UserError(f"{out} is there already; remove it, or write to another folder")
        model, losses = train(source, windows, training, device)
        with room_for(out.parent, trained_bytes(model)), Scratch(out.parent) as unfinished:
            model.save_pretrained(str(unfinished / "adapter"), save_embedding_layers=False)
            (unfinished / "adapter").rename(out)
    return losses


def train(source: OpenedModel, windows: Tensor, training: Training, device: str = "cpu") -> tuple[Any, list[float]]:
    """The peft model of `source` with trained adapters, and each step's loss. What is in NF4 stays so; of a model of any other kind the
    plain or decoded weights are there in FP32. Layers multiply in BF16 where the device can, as in the paper. A large model is at rest
    (qlab.models.resting), and blocks are computed twice.

    Raises:
        UserError: as check_trainable, or the loss stops being a number.
    """
    check_trainable(source)
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        holding = held_on(source, device)
        base = load(source, device=device, native=True, apart=True, holding=holding)
        if in_nf4(source):
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        wanted = LoraConfig(r=training.rank, lora_alpha=training.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, wanted)
        if holding != WHOLE:
            compute_twice(base.get_submodule(source.layout.blocks))
        order = torch.randperm(len(windows))
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path = source.name  # not a path of this machine
    config.target_modules = sorted(config.target_modules)  # peft has a set, which is saved in another order by each process
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=training.rate, weight_decay=0.0)
    batches, losses = cycle(order.split(training.batch)), list[float]()
    with counter(training.steps, 0, "steps") as count:
        for _ in range(training.steps):
            batch = windows[next(batches)].to(device)
            with quick_products(batch.device):
                loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.3)  # the paper's
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise UserError(f"the loss is not a number after {len(losses)} steps: a smaller --rate is wanted")
            count(f"loss {losses[-1]:.3f}", {})
    if holding != WHOLE:
        compute_once(base.get_submodule(source.layout.blocks))
    return model.eval(), losses


def compute_twice(blocks: nn.Module) -> None:
    """Have each block forget what it computed on the way there, and compute it again on the way back: the same gradients, with one block's
    activations in memory."""
    for block in blocks.children():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compute_once(blocks: nn.Module) -> None:
    """Undo compute_twice. A block that holds its own method would be in memory until Python looks for such rings."""
    for block in blocks.children():
        del block.forward


def check_trainable(source: OpenedModel) -> None:
    """See that adapters can be trained on a model.

    Raises:
        UserError: it is in NF4 and has experts.
    """
    if in_nf4(source):
        check_experts("bitsandbytes", source)


def in_nf4(source: OpenedModel) -> bool:
    """Whether a model is stored as bitsandbytes has it, in NF4 or FP4."""
    return quantization_of(source.config).get("quant_method") == "bitsandbytes"


@torch.no_grad()
def effect_on(model: Any, windows: Tensor) -> dict[str, list[float]]:
    """The loss (nats a token) on each of `windows`, int64 [windows, length], without the adapters and with them: {before, after}."""

    def losses() -> list[float]:
        some = (window.to(model.device) for window in windows.split(1))
        return [float(model(input_ids=window, labels=window, use_cache=False).loss) for window in some]

    with model.disable_adapter():
        before = losses()
    return {"before": before, "after": losses()}


def trained_bytes(model: nn.Module) -> int:
    """Bytes of the adapters."""
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def frozen_bytes(model: nn.Module) -> int:
    """Bytes of the weights that training leaves alone: what has to be held of the model beside the adapters."""
    return sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)


def tune(source: OpenedModel, windows: Tensor, judged: Tensor, training: Training, device: str = "cpu") -> Tuned:
    """Train adapters for `source` on windows, int64 [windows, length], and measure what they do on those that are `judged`.

    Raises:
        UserError: as train.
    """
    model, losses = train(source, windows, training, device)
    effect = effect_on(model, judged)
    return Tuned(losses, frozen_bytes(model), effect["before"], effect["after"], factors_of(model))


def factors_of(model: Any) -> dict[str, tuple[Tensor, Tensor, float]]:
    """The factors of a peft model's layers, as Tuned has them."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            second, first = (getattr(layer, part)["default"].weight.detach() for part in ("lora_B", "lora_A"))
            found[name.removeprefix(PREFIX)] = (second, first, float(layer.scaling["default"]))
    return found
