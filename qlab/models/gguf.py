"""The configuration in a GGUF file, as transformers has it. Its own reader of GGUF loses rotary scaling, head widths and biases."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from qlab.formats.gguf.reading import GGUFFiles, configuration
from qlab.models.layout import UNOPENED, cannot_open
from qlab.support.errors import UserError


def gguf_config(path: Path) -> PreTrainedConfig:
    """The configuration in a GGUF file, or in the one model of a folder.

    Raises:
        UserError: it is no GGUF file, not whole, or of an architecture that qlab does not read.
        OSError: it cannot be read.
    """
    found = configuration(GGUFFiles(path))
    try:
        return AutoConfig.for_model(**found)
    except UNOPENED as error:
        raise UserError(cannot_open(path.name, error)) from error
