"""A quantized checkpoint as an ordinary one of the same values."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlab.artifacts.artifact import quantize_model
from qlab.models import plain_copy as copies
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.plain_copy import ORIGIN, plain_copy
from qlab.recipes import parse


@pytest.fixture(scope="module")
def gguf(tiny: OpenedModel, calibration: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (made,) = quantize_model(tiny, [parse("q8_0")], calibration, tmp_path_factory.mktemp("gguf"))
    return next(made.path.glob("*.gguf"))


def test_a_gguf_file_becomes_a_folder_that_transformers_opens(gguf: Path, tiny: OpenedModel, tmp_path: Path) -> None:
    source = locate(str(gguf))
    copy = plain_copy(source, tmp_path / "copies" / "tiny")
    assert copy.name == source.name
    assert not copy.checkpoint.quantized
    tokens = torch.arange(1, 33)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(copy.path, dtype=torch.float32).eval()(tokens).logits
        ours, exact = load(copy)(tokens).logits, load(source)(tokens).logits
    assert torch.equal(theirs, ours)
    torch.testing.assert_close(ours, exact, rtol=1e-2, atol=1e-2)  # Q8_0's values are rounded to FP16
    text = "Return the array's shape.\n"
    assert load_tokenizer(copy).encode(text) == load_tokenizer(tiny).encode(text)


def test_a_copy_is_made_once_and_anew_for_another_model(gguf: Path, tmp_path: Path) -> None:
    place = tmp_path / "tiny"
    plain_copy(locate(str(gguf)), place)
    before = (place / "model.safetensors").stat().st_mtime_ns
    plain_copy(locate(str(gguf)), place)
    assert (place / "model.safetensors").stat().st_mtime_ns == before
    (place / ORIGIN).write_text('{"model": "another"}')
    plain_copy(locate(str(gguf)), place)
    assert (place / "model.safetensors").stat().st_mtime_ns > before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_who_wants_the_copy_while_it_is_made_waits_for_it(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lessons do that run at the same time."""
    made, make = list[float](), copies.make_copy

    def slowly(*arguments: Any) -> None:
        made.append(time.monotonic())
        time.sleep(0.5)
        make(*arguments)

    monkeypatch.setattr(copies, "make_copy", slowly)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: plain_copy(locate(str(gguf)), tmp_path / "tiny"), range(2)))
    assert len(made) == 1
    assert found[0].fingerprint == found[1].fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
