"""Which families another library takes and qlab does not, by name, and that qlab does not take them."""

from __future__ import annotations

from types import ModuleType

import pytest
from transformers import AutoConfig

from qlab.doctor.families import REFUSED, beside_qlab, gguf_files
from qlab.formats.gguf.architectures import ARCHITECTURES
from qlab.models.layout import opened_layout
from qlab.peers import autoawq, autogptq
from qlab.support.errors import UserError


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_is_called_refused_is_refused(kind: str) -> None:
    with pytest.raises(UserError):
        opened_layout(AutoConfig.for_model(kind), kind)


def test_a_library_s_families_are_told_by_name() -> None:
    known = autogptq.families()
    said = beside_qlab(known)
    assert said.startswith(f"knows {len(known)} families, of which qlab does not take ")
    assert "baichuan" in said
    assert "nor gpt2 (its layers are no linear layers)" in said
    assert "llama" not in said.replace("longllama", "")


@pytest.mark.parametrize("library", [autogptq, autoawq])
def test_what_is_known_without_its_import_is_what_a_library_says(library: ModuleType) -> None:
    assert list(library.KNOWN) == library.families()


def test_gguf_is_told_by_name_both_ways() -> None:
    own, others = gguf_files().split("; of llama.cpp's other architectures")
    assert all(kind in own for kind in ARCHITECTURES)
    assert "jamba" in others
    assert "qwen3moe" not in others
