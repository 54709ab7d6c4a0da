"""Which of llama.cpp's block formats lesson 4 can show on a model: superblocks where they divide rows, else blocks of 32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from qlab.methods.kquants.blocks import SUPERBLOCK, single_scale
from qlab.methods.rtn import rtn
from qlab.support.wording import Sentence


@dataclass(frozen=True)
class Shown:
    """The `layers` whose rows blocks of `kind` divide, `fine` the format with more bits, and the `control`, which has fewer scales.

    `label` and `control_label` name the two in figures and records; `said` says in one sentence which layers these are.
    """

    kind: str
    fine: str
    label: str
    control_label: str
    control: Callable[[Tensor], Tensor]
    layers: Mapping[str, nn.Linear]
    said: str

    @property
    def by_importance(self) -> Sentence:
        """The name of blocks of this kind whose grids are searched by the importance of each weight's input."""
        return Sentence("{kind} by importance", kind=self.kind)


def plain_groups(size: int) -> Sentence:
    """The name of plain rounding at 4 bits in groups of so many weights, each with an FP16 scale and a zero point of 4 bits."""
    return Sentence("RTN, groups of {size} ({bits:.1f} bits)", size=size, bits=4 + 20 / size)


def plain_name(label: str) -> str:
    """What is compared with, without the word that it is the control."""
    return label.removeprefix("control: ") if label.startswith("control: ") else label  # else a text would lose its template


def shown_blocks(layers: Mapping[str, nn.Linear]) -> Shown:
    """Q4_K on the layers whose rows are whole superblocks; where there is none, Q5_0 on all, which is what llama.cpp falls back to."""
    whole = {name: layer for name, layer in layers.items() if layer.in_features % SUPERBLOCK == 0}
    parts = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in whole))
    label, control_label = "Q4_K: 8 scales a superblock", "control: one scale a superblock"
    if len(whole) == len(layers):
        said = Sentence("Superblocks of {size} weights divide the rows of every layer.", size=SUPERBLOCK)
        return Shown("Q4_K", "Q6_K", label, control_label, single_scale, whole, said)
    if whole:
        said = Sentence(
            "Superblocks of {size} weights divide the rows of {count} of {layers} layers ({parts}). The figures are theirs; a GGUF file "
            "stores the others in blocks of 32.",
            size=SUPERBLOCK, count=len(whole), layers=len(layers), parts=parts,
        )  # fmt: skip
        return Shown("Q4_K", "Q6_K", label, control_label, single_scale, whole, said)
    no_layer = "No layer has rows that superblocks of {size} weights divide: a GGUF file stores all in blocks of 32, which are shown."
    said = Sentence(no_layer, size=SUPERBLOCK)
    return Shown("Q5_0", "Q8_0", "Q5_0: a scale for 32", "control: one scale a row", lambda w: rtn(w, 5, -1).dequantize(), layers, said)
