"""Numbers in sentences: no minus before a zero, one token but two tokens."""

from __future__ import annotations

from collections.abc import Sequence


def signed(value: float, digits: int) -> str:
    """`value` with its sign and so many decimals; what rounds to nothing has no sign."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else f"{0:.{digits}f}"


def sized(gigabytes: float) -> str:
    """2.4 GB, 85 MB; a GB is 10⁹ bytes."""
    return f"{gigabytes:.1f} GB" if gigabytes >= 0.95 or not gigabytes else f"{1000 * gigabytes:.0f} MB"


def counted(number: int, thing: str) -> str:
    """1 token, 2 tokens."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(names: list[str]) -> str:
    """A, B and C."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def layer_place(name: str) -> tuple[int, list[str], str]:
    """Of a layer's full name: the number of its block, those of lists of experts that it lies in, and what it is called there.

    model.layers.3.mlp.down_proj → 3, [], down_proj; model.layers.3.mlp.experts.7.up_proj → 3, [7], up_proj.
    """
    *path, kind = name.split(".")
    block, *experts = [part for part in path if part.isdecimal()]
    return int(block), experts, kind


def first_and_number(names: Sequence[str]) -> str:
    """The first name, and how many others there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
