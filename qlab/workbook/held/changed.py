"""Other weights in the place of a model's own, while it is at rest: half precision could not hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qlab.evaluate.kept import kept
from qlab.models.resting.layers import Resting

Change = Callable[[str, Tensor], Tensor]
"""(layer's name, weight float32 [out, in]) → the weight in its place, the same each time."""


@contextmanager
def changed_at_rest(model: nn.Module, change: Change, names: Iterable[str], costly: bool, place: Path) -> Iterator[None]:
    """Within the context `change` has a say in the weights of the layers `names`, each time that they compute. Where it is `costly`, it is
    asked once, and what it said lies in a file below `place`, from which it is read each time.

    Raises:
        TypeError: one of the layers is not at rest.
        UserError: the disk has no room.
    """
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    for name, layer in layers.items():
        if not isinstance(layer, Resting):
            raise TypeError(f"{name} is not at rest, as the layers of its model are")
    made: dict[str, Callable[[Tensor], Tensor]] = {name: partial(change, name) for name in layers}
    if costly:
        size = sum(4 * layer.in_features * layer.out_features for layer in layers.values())
        tensors = kept((change(name, layer.weight.data).float() for name, layer in layers.items()), size, "changed weights", place)
        made = {name: partial(nth, tensors, index) for index, name in enumerate(layers)}
    try:
        for name, layer in layers.items():
            layer.instead = made[name]
        yield
    finally:
        for layer in layers.values():
            layer.instead = None


def nth(tensors: Any, index: int, _: Tensor) -> Tensor:
    """The tensor at `index`, whatever stood there."""
    return tensors[index]
