"""Which families another library quantizes and qlab does not, and the reverse, by name: one sentence for each library.

Whether a library takes the model at hand, its recipe's check says (qlab.peers.families), and the first table of lesson 7.
"""

from __future__ import annotations

from collections.abc import Collection

import gguf
from transformers import CONFIG_MAPPING

from qlab.formats.gguf.architectures import ARCHITECTURES
from qlab.support.wording import listed

REFUSED = {  # of the model types that transformers has, those that a library knows and qlab refuses; tests try each
    "gpt2": "its layers are no linear layers",
    "qwen2_5_omni": "it is no language model alone or with images",
}
MODERN = "mixtures of experts and models that read images qlab alone takes, since transformers 5 holds them in another form than 4 did"


def beside_qlab(known: Collection[str]) -> str:
    """What a library with classes for the model types `known` takes and qlab does not, and the reverse."""
    foreign = [kind for kind in known if kind not in CONFIG_MAPPING]
    refused = [f"{kind} ({REFUSED[kind]})" for kind in known if kind in REFUSED]
    said = f"knows {len(known)} families, of which qlab does not take {listed(foreign)}, whose code lies with the model"
    return f"{said}{f', nor {listed(refused)}' if refused else ''}; {MODERN}"


def gguf_files() -> str:
    """The model types of which qlab writes GGUF, and llama.cpp's architectures that it does not write."""
    own = {gguf.MODEL_ARCH_NAMES[each.arch] for each in ARCHITECTURES.values()}
    others = [name for name in gguf.MODEL_ARCH_NAMES.values() if name not in own]
    return f"qlab writes GGUF of {listed(list(ARCHITECTURES))}; of llama.cpp's other architectures its own converter does: {listed(others)}"
