"""The configuration in a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from qlab.models.gguf import gguf_sizes
from qlab.support.errors import UserError


def write(file: Path, kind: str, sizes: dict[str, int]) -> None:
    writer = gguf.GGUFWriter(file, kind)
    for name, value in sizes.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list([f"t{index}" for index in range(64)])
    writer.add_tensor("token_embd.weight", np.zeros((64, sizes.get("embedding_length", 8)), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


SIZES = {"head_count": 2, "head_count_kv": 2, "block_count": 1, "context_length": 128, "feed_forward_length": 96}


def test_what_neither_qlab_nor_transformers_reads(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "unheard-of", SIZES | {"embedding_length": 64})
    with pytest.raises(UserError, match=r"transformers cannot open m\.gguf"):
        gguf_sizes(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", ["llama", "gemma2"])  # read by qlab, and for the planner by transformers
def test_a_configuration_follows_its_file(kind: str, tmp_path: Path) -> None:
    for width in (64, 68):
        write(tmp_path / "m.gguf", kind, SIZES | {"embedding_length": width})
        config: dict[str, Any] = gguf_sizes(tmp_path / "m.gguf")
        assert config["hidden_size"] == width
        config["hidden_size"] = 1  # whoever asks again gets a copy of what the file says
        assert gguf_sizes(tmp_path / "m.gguf")["hidden_size"] == width
