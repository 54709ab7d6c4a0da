"""A whole model in a GGUF file, without a walk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qlab.formats.gguf.encoding import encode_tensor
from qlab.formats.gguf.file import assemble
from qlab.formats.gguf.mix import Mix
from qlab.models.locating import weight_files


def write_gguf(folder: Path, config: dict[str, Any], mix: str, out: Path, importance: Mapping[str, Tensor] | None = None) -> None:
    """Write the model of `folder` to the file `out` in the `mix`, a key of mix.DEFAULT.

    `importance` holds the mean squared activation of each input channel [in] by layer, "model.layers.0.self_attn.q_proj".
    Raises what encode_tensor and assemble raise.
    """
    parts: list[Path] = []
    names: list[str] = []
    with tempfile.TemporaryDirectory() as waiting:
        for file in weight_files(folder):
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dictionary
                    names.append(name)
                    weights = (importance or {}).get(name.removesuffix(".weight"))
                    if encoded := encode_tensor(name, opened.get_tensor(name), Mix(mix, weighed=importance is not None), config, weights):
                        parts.append(Path(waiting) / f"{len(parts)}.safetensors")
                        save_file(encoded, parts[-1])
        assemble(parts, folder, config, names, mix, out)
