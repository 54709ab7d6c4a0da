"""Configuration and tokenizer in a GGUF file, in the words and files of a Hugging Face model."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from qlab.formats.gguf.configuration import READ, check_sizes
from qlab.formats.gguf.reading import GGUFFiles, configuration
from qlab.formats.gguf.tokens.vocabulary import read_tokenizer
from qlab.models.configuration import checked
from qlab.models.layout import cannot_open
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError


def gguf_config(file: Path) -> dict[str, Any]:
    """config.json of the model in a GGUF file, as qlab reads its header.

    Of architectures that qlab does not read, what transformers makes of the header: enough for the planner, which wants sizes alone.

    Raises:
        UserError: the file is no GGUF file, not whole, or of an architecture that transformers does not know either.
        OSError: it cannot be read.
    """
    known = file.stat()
    return deepcopy(_gguf_config(file.absolute(), known.st_size, known.st_mtime_ns))


@lru_cache(maxsize=8)  # transformers makes objects of the whole vocabulary for it
def _gguf_config(file: Path, size: int, changed: int) -> dict[str, Any]:
    files = GGUFFiles(file)
    if (kind := files.settings.get("general.architecture")) in READ:
        config = configuration(files)
        checked(config, file.name)
        return config
    check_sizes(files.settings, str(kind))
    try:
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False).to_dict()
    except Exception as error:  # it raises what it likes of what it does not foresee
        raise UserError(cannot_open(file.name, error)) from error


def unpacked_companions(path: Path) -> Path:
    """A temporary folder, which goes with the process, with the tokenizer and the configuration of a GGUF file or folder.

    Raises:
        UserError: a kind of tokenizer or an architecture that qlab does not read.
    """
    files = GGUFFiles(path, arrays=True)
    tokenizer, config = read_tokenizer(files), configuration(files)
    folder = Scratch()
    _kept.append(folder)
    tokenizer.save_pretrained(folder.path)
    (folder.path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder.path


_kept: list[Scratch] = []
