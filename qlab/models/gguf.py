"""The configuration in a GGUF file, as transformers reads it, mended where it drops something."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path

from gguf import MODEL_ARCH_NAMES
from transformers import AutoConfig, PreTrainedConfig

from qlab.formats.gguf.header import read_header
from qlab.formats.gguf.metadata import ARCHITECTURES
from qlab.models.layout import UNOPENED, cannot_open
from qlab.support.errors import UserError


def gguf_config(file: Path) -> PreTrainedConfig:
    """The configuration in a GGUF file, with what transformers leaves out of it: the width of a head, and which layers have biases.

    Without these it takes a family's usual width, and drops the biases in silence.

    Raises:
        UserError: the file is no GGUF file, not whole, or of an architecture that transformers does not know.
        OSError: it cannot be read.
    """
    known = file.stat()
    try:
        return deepcopy(_gguf_config(file.absolute(), known.st_size, known.st_mtime_ns))
    except UNOPENED as error:
        raise UserError(cannot_open(file.name, error)) from error


@lru_cache(maxsize=8)  # transformers makes objects of the whole vocabulary for it
def _gguf_config(file: Path, size: int, changed: int) -> PreTrainedConfig:
    header = read_header(file)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    kind = header.settings["general.architecture"]
    if kind in {MODEL_ARCH_NAMES[written] for written in ARCHITECTURES.values()}:  # elsewhere a head may have several widths
        if (width := header.settings.get(f"{kind}.attention.key_length")) is not None:
            config.head_dim = int(width)
        for option, tensor in (("attention_bias", "blk.0.attn_output.bias"), ("mlp_bias", "blk.0.ffn_down.bias")):
            if tensor in header.tensors:
                setattr(config, option, True)
    return config
