"""Numbers in sentences: no minus before a zero, one token but two tokens; and sentences that another language can make anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any


class Sentence(str):
    """An English text made of a template and values, which keeps both, so that it can be said in another language.

    `template` is a format string of named fields, `values` are what they stand for; a value may be such a text again. Everywhere else it
    is the English text: it compares, joins and is stored as that.
    """

    template: str
    values: Mapping[str, Any]

    def __new__(cls, template: str, /, **values: Any) -> Sentence:
        made = super().__new__(cls, template.format(**values))
        made.template, made.values = template, values
        return made

    def __reduce__(self) -> tuple[Callable[[], Sentence], tuple[()]]:
        return partial(Sentence, self.template, **self.values), ()  # else a copy would be formatted once more


def joined(between: str, parts: Sequence[str]) -> Sentence:
    """Texts one after another, each of which keeps its template."""
    names = [f"part{place}" for place in range(len(parts))]
    return Sentence(between.join(f"{{{name}}}" for name in names), **dict(zip(names, parts, strict=True)))


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


def plural(count: int, one: str, several: str) -> Sentence:
    """The template for one thing, or the one for several, with its `count` put in."""
    return Sentence(one if count == 1 else several, count=count)


def listed(names: Sequence[str]) -> Sentence:
    """A, B and C."""
    if len(names) < 2:
        return joined("", names)
    return Sentence("{others} and {last}", others=joined(", ", names[:-1]), last=names[-1])


def layer_place(name: str) -> tuple[int, list[str], str]:
    """Of a layer's full name: the number of its block, those of lists of experts that it lies in, and what it is called there.

    model.layers.3.mlp.down_proj → 3, [], down_proj; model.layers.3.mlp.experts.7.up_proj → 3, [7], up_proj.
    """
    *path, kind = name.split(".")
    block, *experts = [part for part in path if part.isdecimal()]
    return int(block), experts, kind


def first_and_number(names: Sequence[str]) -> str:
    """The first name, and how many others there are."""
    return Sentence("{first} and {count} more", first=names[0], count=len(names) - 1) if len(names) > 1 else names[0]
