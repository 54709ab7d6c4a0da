"""Statistics of many layers, made a block at a time: those of a large model's sample would be as large as the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from qlab.evaluate.kept import kept
from qlab.models.resting.layers import device_of
from qlab.walk.routing import collect_beside
from qlab.walk.statistics import Statistics


class OneOfMany(Statistics):
    """A layer's statistics whose H is read anew, onto the device, each time it is asked for."""

    def __init__(self, read: Callable[[], Tensor], absolute_sum: Tensor, largest: Tensor, tokens: int) -> None:
        self.read, self.absolute_sum, self.largest, self.tokens = read, absolute_sum, largest, tokens
        self.mixes, self.first = False, []

    @property
    def hessian(self) -> Tensor:  # type: ignore[override]
        """XᵀX float32 [in, in]."""
        return self.read()


class KeptStatistics(Mapping[str, Statistics]):
    """The statistics of layers by name. Each H is made once, and then lies in a file, or in memory where they are few."""

    def __init__(self, model: nn.Module, blocks: Mapping[str, Mapping[str, nn.Linear]], windows: Tensor, place: Path) -> None:
        """Run the calibration windows, int64 [windows, length], through `model` once for each of `blocks`, by whose names their layers
        stand, no further than this block.

        Raises:
            UserError: the disk below `place` has no room for them.
        """
        self._layers = {name: layer for layers in blocks.values() for name, layer in layers.items()}
        self._sums: dict[str, tuple[Tensor, Tensor, int]] = {}

        def made() -> Iterator[Tensor]:
            for block, layers in blocks.items():
                found, _ = collect_beside(model, dict(layers), {}, windows, model.get_submodule(block))
                for name in layers:
                    seen = found.pop(name)
                    self._sums[name] = seen.absolute_sum, seen.largest, seen.tokens
                    yield seen.hessian
                    del seen

        size = sum(4 * layer.in_features**2 for layer in self._layers.values())
        self._matrices = kept(made(), size, "what the layers read", place)
        self._places = {name: index for index, name in enumerate(self._sums)}

    def __getitem__(self, name: str) -> Statistics:
        device, index = device_of(self._layers[name]), self._places[name]
        return OneOfMany(lambda: self._matrices[index].to(device), *self._sums[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
