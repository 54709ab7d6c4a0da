"""What a block is called with besides hidden states, for any number of windows.

A model's class makes it for the windows that it is given. Much of it is the same for one window and for many, as rotary angles are. Some
has entries for each window: ALiBi's biases (BLOOM: one for each head of each window), a mask whose shape is checked (XGLM). Which is which
is seen by running the class on one window and on two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlab.support.errors import UserError

Arguments = dict[str, Any]


@dataclass(frozen=True)
class EachWindow:
    """A tensor with entries for each window: `one` window's, which along `dimension` are followed by those of the next."""

    one: Tensor
    dimension: int

    def of(self, windows: int) -> Tensor:
        """The tensor for so many windows; no memory is taken where one window has one entry."""
        times = [windows if dimension == self.dimension else 1 for dimension in range(self.one.ndim)]
        if self.one.shape[self.dimension] == 1:
            return self.one.expand([size * more for size, more in zip(self.one.shape, times)])
        return self.one.repeat(times)


def told_apart(one: Any, two: Any, name: str) -> Any:
    """What a block of the model `name` is called with for `one` window, each tensor that was another for `two` alike as an `EachWindow`.

    Raises:
        UserError: it depends on the number of windows in another way.
    """
    if type(one) is dict:
        return {key: told_apart(value, two[key], name) for key, value in one.items()}
    if type(one) in (list, tuple):
        return type(one)(told_apart(*pair, name) for pair in zip(one, two, strict=True))
    if not isinstance(one, Tensor):
        if isinstance(one, int) and one != two:
            raise UserError(unknown(name))
        return one
    if one.shape == two.shape:
        return one
    changed = [dimension for dimension, (size, other) in enumerate(zip(one.shape, two.shape)) if size != other]
    found = EachWindow(one, changed[0]) if len(changed) == 1 and one.ndim == two.ndim else None
    if found is None or two.shape[found.dimension] != 2 * one.shape[found.dimension] or not torch.equal(found.of(2), two):
        raise UserError(unknown(name))
    return found


def unknown(name: str) -> str:
    return (
        f"what blocks of {name} are called with depends on the number of windows in a way that qlab does not know, and it runs several at "
        "a time"
    )


def for_windows(arguments: Any, windows: int) -> Any:
    """The arguments for so many windows."""
    if isinstance(arguments, EachWindow):
        return arguments.of(windows)
    if type(arguments) is dict:
        return {key: for_windows(value, windows) for key, value in arguments.items()}
    if type(arguments) in (list, tuple):
        return type(arguments)(for_windows(value, windows) for value in arguments)
    return arguments
