"""Too little memory, in words."""

from __future__ import annotations

import pytest
import torch

from qlab.support.memory import no_memory, pinned


def test_the_machine_has_too_little() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    said = no_memory(caught.value)
    assert "the machine has too little memory: 1152921504606846976 bytes more were wanted" in said
    assert "--windows" in said
    assert "the machine has too little memory" in no_memory(MemoryError())


def test_the_gpu_has_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {1: (10**9, 24 * 10**9)}[device])
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 24 GiB")
    said = no_memory(error)
    assert "2.00 GiB more were wanted, 1.00 of 24.00 GB are free" in said
    assert "nvidia-smi" in said
    assert "--device cpu" in said


def test_pinned_memory_is_made_by_the_gpu_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()

    class Current:
        def __init__(self, device: str) -> None:
            asked.append(device)

        def __enter__(self) -> None:
            asked.append("in")

        def __exit__(self, *_: object) -> None:
            asked.append("out")

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch, "empty", lambda shape, **options: asked.append((shape, options)))
    pinned((2, 3), torch.float16, "cuda:1")
    assert asked == ["cuda:1", "in", ((2, 3), {"dtype": torch.float16, "pin_memory": True}), "out"]


@pytest.mark.gpu
def test_a_card_has_too_little() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert "the GPU has too little memory" in no_memory(caught.value)


def test_other_errors_are_not_about_memory() -> None:
    assert no_memory(RuntimeError("shapes do not fit")) == ""
