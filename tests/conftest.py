"""A tiny random model that every test may use, and where the trial material lies if it does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qlab import EMBEDDED, ROOT
from qlab.models.loading import load_tokenizer
from qlab.models.named import WHEELS
from qlab.models.opening import OpenedModel, locate
from qlab.support.processes.starting import preload
from qlab.workbook.language.spoken import VARIABLE
from tests.browsing import CHROMIUM, lacking

SHARED = ROOT.parent / "shared"
os.environ.pop(VARIABLE, None)  # tests read English, whatever their user reads
preload("qlab.methods.kernels.cpu.trial")  # many of their processes quantize


def tiny_folder(folder: Path, seed: int = 0) -> Path:
    """A random two-layer Llama with the embedded model's tokenizer, saved as users' models are."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).half().save_pretrained(folder)
    load_tokenizer(locate(str(EMBEDDED))).save_pretrained(folder)
    return folder


# Tests that wait for other programs, which a busy machine delays: a browser, servers, nodes. Not those in which processes are killed at
# drawn moments: what they find is chance already.
WAITING = (
    "tests/browser/",
    "tests/serve/test_server.py",
    "tests/serve/test_load",
    "tests/serve/test_vllm.py",
    "tests/sweep/workers/",
    "tests/notebooks/test_workbook.py::test_every_page_of_the_report_in_a_browser",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The lessons first, which take longest: of two workers, neither is then left alone with them at the end.

    A test that waits for other programs gets a second try, and pytest's summary names each that needed it. No other test does.
    """
    items.sort(key=lambda item: not item.nodeid.startswith("tests/notebooks/"))
    for item in items:
        if item.nodeid.startswith(WAITING):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return locate(str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture(scope="session")
def calibration() -> torch.Tensor:
    return torch.randint(1, 4096, (8, 64), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def second_model() -> Path:
    folder = SHARED / "models" / "wiki-qwen2-14m"
    if not folder.exists():
        pytest.skip("the trial model wiki-qwen2-14m is not beside this repository")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> OpenedModel:
    if not WHEELS["smollm2"].file.is_file():
        pytest.skip("the model smollm2 is not on this machine: 'qlab fetch smollm2' downloads it (93 MB)")
    return locate("smollm2")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if reason := lacking():
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
