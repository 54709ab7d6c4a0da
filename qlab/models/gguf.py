"""Configuration and tokenizer in a GGUF file, in the words and files of a Hugging Face model."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from qlab.formats.gguf.configuration import check_sizes
from qlab.formats.gguf.reading import GGUFFiles, configuration
from qlab.formats.gguf.settings import NotRead
from qlab.formats.gguf.tokens.vocabulary import read_tokenizer
from qlab.models.configuration import checked
from qlab.models.layout import cannot_open
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError


def gguf_config(file: Path) -> dict[str, Any]:
    """config.json of the model in a GGUF file, as qlab reads its header.

    Raises:
        UserError: the file is no GGUF file, not whole, or of a model that qlab does not read.
        OSError: it cannot be read.
    """
    return _asked(file, _read)


def gguf_sizes(file: Path) -> dict[str, Any]:
    """The same, and of models that qlab does not read what transformers makes of the header: enough for a plan, which wants sizes alone.

    Raises:
        UserError: the file is no GGUF file, not whole, or of an architecture that transformers does not know either.
        OSError: it cannot be read.
    """
    try:
        return gguf_config(file)
    except NotRead:
        return _asked(file, _estimated)


def _asked(file: Path, read: Callable[[Path, int, int], dict[str, Any]]) -> dict[str, Any]:
    known = file.stat()
    return deepcopy(read(file.absolute(), known.st_size, known.st_mtime_ns))


@lru_cache(maxsize=8)
def _read(file: Path, size: int, changed: int) -> dict[str, Any]:
    config = configuration(GGUFFiles(file))
    checked(config, file.name)
    return config


@lru_cache(maxsize=8)  # transformers makes objects of the whole vocabulary for it
def _estimated(file: Path, size: int, changed: int) -> dict[str, Any]:
    settings = GGUFFiles(file).settings
    check_sizes(settings, str(settings.get("general.architecture")))
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
