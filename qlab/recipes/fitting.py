"""How grouped integers are fitted to a model: the group size that divides its rows, and the layers that a layout cannot hold.

AWQ's and GPTQ's layouts name one group size for the whole model, so one layer with shorter rows decides for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from qlab.models.layout import Layout
from qlab.models.opening import OpenedModel
from qlab.support.errors import UserError
from qlab.support.wording import Sentence, first_and_number

CODES = (".qweight", ".weight_packed")  # what layouts call a layer's codes; of 8 bits, they are called weight, beside a weight_scale
STANDARD_SIZES = (128, 64, 32)  # group sizes that runtimes have kernels for
# Layers that vLLM joins to one matrix. All of them are quantized, or none is.
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("in_proj_qkv", "in_proj_z"), ("in_proj_b", "in_proj_a"))

Layers = Mapping[str, Sequence[int]]
"""Shapes [out, in] of linear layers, by name."""
Unfit = Callable[[int, int], str]
"""(outputs, inputs) → why a layout cannot hold such a layer, or an empty text."""


def layers_of(layout: Layout) -> dict[str, Sequence[int]]:
    """The linear layers of the decoder blocks, by their names without ".weight"."""
    return {name.removesuffix(".weight"): shape for name, shape in layout.linear.items()}


def unquantized(layers: Layers, size: int, unfit: Unfit) -> dict[str, str]:
    """The layers that must stay in half precision, each with the reason: those that the layout cannot hold, those whose rows
    neither groups of `size` nor the smallest standard groups divide, and those that runtimes join to one of these."""
    smallest = STANDARD_SIZES[-1]
    found = {name: reason for name, (outputs, inputs) in layers.items() if (reason := unfit(outputs, inputs))}
    for name, (_, inputs) in layers.items():
        if size != -1 and inputs % size and inputs % smallest:
            found[name] = Sentence("groups of {size} or more do not divide rows of {inputs} weights", size=smallest, inputs=inputs)
    for name in list(found):
        parent, _, part = name.rpartition(".")
        for other in next((parts for parts in JOINED if part in parts), ()):
            joined = f"{parent}.{other}" if parent else other
            if joined in layers:
                found.setdefault(joined, Sentence("runtimes join it to {part}, which stays in half precision", part=part))
    return found


def undivided(layers: Layers, size: int, unfit: Unfit) -> str:
    """The first of the layers to be quantized whose rows groups of `size` do not divide; empty if there is none."""
    kept = unquantized(layers, size, unfit)
    return next((name for name, (_, inputs) in layers.items() if name not in kept and size != -1 and inputs % size), "")


def fitted_size(asked: int, layers: Layers, unfit: Unfit) -> tuple[int, str]:
    """The largest group size for the model: `asked`, or the largest standard one below it that divides all rows; and why not `asked`.

    Where no size serves, it is `asked`, and the recipe's check refuses it.
    """
    if not (first := undivided(layers, asked, unfit)):
        return asked, ""
    size = next((size for size in STANDARD_SIZES if size < asked and not undivided(layers, size, unfit)), asked)
    if size == asked:
        return size, ""
    why = "rows of {inputs} weights in {layer}, which groups of {asked} do not divide"
    return size, Sentence(why, inputs=layers[first][1], layer=first, asked=asked)


def check_layers(name: str, layers: Layers, size: int, unfit: Unfit) -> None:
    """See that a recipe of groups of `size` can quantize the model.

    Raises:
        UserError: rows that the groups do not divide, or no layer that could be quantized at all.
    """
    if first := undivided(layers, size, unfit):
        inputs = layers[first][1]
        serving = ", ".join(str(other) for other in STANDARD_SIZES if not inputs % other) or f"divisors of {inputs}"
        raise UserError(f"{name}: {first} has rows of {inputs} weights, which groups of {size} do not divide; groups that do: {serving}")
    kept = unquantized(layers, size, unfit)
    if layers and len(kept) == len(layers):
        first, reason = next(iter(kept.items()))
        raise UserError(f"{name}: no layer of this model can be stored in this format ({first}: {reason}); nf4 takes rows of any length")


def summary(kept: Mapping[str, str]) -> list[Sentence]:
    """One sentence for each reason for which layers stay in half precision."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in kept.items():
        by_reason.setdefault(reason, []).append(name)
    text = "{layers}: in half precision, since {reason}"
    return [Sentence(text, layers=first_and_number(names), reason=reason) for reason, names in by_reason.items()]


def stored_layers(layout: Layout, parts: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Linear layers in a walk's parts: those in half precision, and those quantized.

    A layer goes by its name within its block ("mlp.up_proj"), which all readers of a checkpoint's configuration know, or by its whole
    name where other blocks have it in the other way.
    """
    kept, quantized = [], []
    for part in parts:
        with safe_open(part, "pt") as opened:
            names = dict.fromkeys(opened.keys())
        for name in names:
            if name.endswith(CODES) or f"{name}_scale" in names:
                quantized.append(name.rpartition(".")[0])
            elif name in layout.linear:
                kept.append(name.removesuffix(".weight"))
    both = {layout.within_block(name) for name in kept} & {layout.within_block(name) for name in quantized}

    def shortened(names: list[str]) -> list[str]:
        return list(dict.fromkeys(name if layout.within_block(name) in both else layout.within_block(name) for name in names))

    return shortened(kept), shortened(quantized)


def left_alone(source: OpenedModel) -> list[str]:
    """Modules with linear layers that are never quantized: towers beside the decoder, and what chooses and weighs experts.

    Towers by the last part of their names, which vLLM looks for in a layer's, and by the whole, with which transformers wants a layer's
    to begin. Gates by their names from the list of blocks on, as the model's class and as its files call them.
    """
    layout = source.layout
    stack, found = layout.blocks.rpartition(".")[2], [name for tower in layout.towers for name in (tower.rpartition(".")[2], tower)]
    for gate in layout.gates:
        for name in (gate, source.checkpoint.stored_name(f"{gate}.weight").removesuffix(".weight")):
            found.append(f"{stack}.{name.partition(f'{stack}.')[2]}")
    return list(dict.fromkeys(found))
