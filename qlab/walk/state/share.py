"""What one of several devices does of a walk.

Recipes that see the original model's activations have each block quantized by one device in turn. Every device runs the original blocks
for itself, so that nothing passes between devices and the bytes are those of a single one. A sequential recipe reads what its own
quantized blocks make, one after another: one device does all of its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Kind(Protocol):
    """A recipe, as far as its share of devices depends on it."""

    @property
    def data(self) -> bool: ...
    @property
    def sequential(self) -> bool: ...


K = TypeVar("K", bound=Kind)


@dataclass(frozen=True)
class Share:
    """The share of device number `rank` among `of` devices."""

    rank: int = 0
    of: int = 1

    @property
    def name(self) -> str:
        """Its folder in a walk's state."""
        return f"device-{self.rank}-of-{self.of}"

    def of_block(self, methods: Sequence[K], index: int) -> list[K]:
        """The recipes by which this device quantizes block `index`."""
        sequential = [method for method in methods if method.sequential]
        own = sequential[self.of - 1 - self.rank :: self.of]  # from the last device on: the first one has the first block too
        return [method for method in methods if (method in own if method.sequential else index % self.of == self.rank)]

    def works(self, methods: Sequence[Kind], count: int) -> bool:
        """Whether this device quantizes any of `count` blocks."""
        return any(self.of_block(methods, index) for index in range(count))

    def reads_original(self, methods: Sequence[Kind], index: int, count: int) -> bool:
        """Whether this device quantizes block `index` or one after it, of `count`, by the original's activations."""
        own = (method for later in range(index, count) for method in self.of_block(methods, later))
        return any(method.data and not method.sequential for method in own)


ALONE = Share()
