"""The report's first page: its table of results is seen whole."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qlab.evaluate.store.provenance import provenance
from qlab.workbook.report import write_report
from qlab.workbook.runner import SKIPPED, Outcome

COLUMNS = [
    "format", "run by", "MB on disk", "MB predicted", "MB in memory", "MB predicted at the peak", "MB at the peak", "perplexity",
    "loss increase (nats/token)", "KL to FP16 (nats/token)", "heldout-cloze acc", "heldout-cloze acc_norm", "prompt tok/s",
    "generation tok/s", "% of ceiling",
]  # fmt: skip
WIDEST = [
    "NF4 by bitsandbytes", "transformers + bitsandbytes", "11.8", "29", "32", "no (1)", "65", "26.69", "+0.0013 ± 0.0006",
    "0.0002129 ± 0.0000075", "80.0 ± 13.3 %", "90.0 ± 10.0 %", "3845 ± 794", "1344.3 ± 100.1", "45",
]  # fmt: skip
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), "")
# What lies beyond the right edge of the table's frame, in pixels, written where the page's text can be read.
MEASURE = "<script>let w = document.querySelector('.wide'); document.title = 'beyond ' + (w.scrollWidth - w.clientWidth)</script>"


@pytest.mark.skipif(not BROWSER, reason="needs chromium, which is not part of the environment")
def test_the_table_of_results_fits_a_page_of_1200_pixels(tmp_path: Path) -> None:
    table = {"columns": COLUMNS, "rows": [WIDEST], "notes": ["a note"]}
    page = write_report([Outcome("07_benchmarks", SKIPPED, {}, records={"table": table})], provenance("embedded"), tmp_path)
    page.write_text(page.read_text().replace("</body>", MEASURE + "</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1200,800"]
    dom = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<title>beyond (\d+)</title>", dom)
    assert found, dom[:2000]
    assert int(found[1]) == 0
