"""A report of a small lesson, as `qlab run` writes it, and a running `qlab lab` with a tab on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlab.evaluate.store.provenance import provenance
from qlab.show.site import report
from qlab.workbook.batch.runner import DONE, Outcome
from tests.browser.lab import Lab, running_lab
from tests.browser.lesson import executed
from tests.browsing import Visit, lacking

COLUMNS = [
    "format", "run by", "MB on disk", "MB predicted", "MB in memory", "MB predicted at the peak", "MB at the peak", "perplexity",
    "loss increase (nats/token)", "KL to FP16 (nats/token)", "heldout-cloze acc", "prompt tok/s", "generation tok/s", "% of ceiling",
]  # fmt: skip
FORMATS = [
    ("NF4 by bitsandbytes", "11.8", "0.02 ± 0.01", "1344.3 ± 100.1"), ("GGUF Q8_0", "9.8", "0.001 ± 0.0001", "88.0 ± 1"),
    ("FP16 original", "102.0", "0", "no (1)"),
]  # fmt: skip
ROWS = [
    [name, "transformers + bitsandbytes", size, "29", "32", "no (1)", "65", "26.69", "+0.0013 ± 0.0006", kl, "80.0 ± 13.3 %", "3,845 ± 794",
     speed, "45"] for name, size, kl, speed in FORMATS
]  # fmt: skip
TABLE = {"columns": COLUMNS, "rows": ROWS, "notes": ["no (1): a note"]}
QUALITY = {
    "perplexity": 20.0,
    "stderr": 1.0,
    "tokens": 1000,
    "top1": 0.9,
    "kl_stderr": 0.001,
    "loss_increase": 0.1,
    "loss_increase_stderr": 0.01,
}


def records() -> dict[str, Any]:
    """Results as lessons record them, few but whole."""
    ladder = {f"quality/rtn-int{bits}": QUALITY | {"kl": 4.0**-bits, "top1": 1 - 2.0**-bits} for bits in (8, 4, 3, 2)}
    chat = [{"bits": bits, "prompt": "Say <b>it</b>", "answer": "It & <script>more</script>"} for bits in (None, 4, 2)]
    model = {"name": "embedded", "fingerprint": "f", "parameters": 11_000_000, "disk_bytes": 22_000_000, "dtype": "float16"}
    return ladder | {"table": TABLE, "chat": chat, "model": model}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report: the first page, two lessons that have been executed, the glossary."""
    out = tmp_path_factory.mktemp("report")
    lesson = executed(out / "notebooks" / "01_principles.ipynb")
    (out / "notebooks" / "02_awq.ipynb").write_bytes(lesson.read_bytes())
    outcomes = [Outcome("01_principles", DONE, {}, 12.0, records=records()), Outcome("02_awq", DONE, {}, 3.0, earlier=True)]
    report.write_report(outcomes, provenance("embedded"), out)
    return out


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if reason := lacking():
        pytest.skip(reason)
    with running_lab(tmp_path_factory.mktemp("qlab")) as found:
        yield found


@pytest.fixture
def visit(browser: Any, lab: Lab) -> Iterator[Visit]:
    """A tab on the contents of `qlab lab`; it must ask nothing of any other address."""
    tab = Visit(browser, lab.home)
    tab.page.goto(f"{lab.home}/{lab.token}")
    yield tab
    assert [address for address in tab.left if not address.startswith("ws://127.0.0.1")] == []
    tab.close()
