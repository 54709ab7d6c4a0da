"""The README's pictures, from a report and what the run that made it printed: `make pictures`, or

    python docs/pictures.py build/report build/run.log

Two figures are taken out of executed lessons, the screenshot is made by Chromium (any, on PATH), the terminal by rich.
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parent
FIGURES = {  # picture → lesson, and a part of the line that draws it
    "bits.png": ("01_principles", '"Distance from the original"'),
    "size.png": ("07_benchmarks", '"Distance from the original against size"'),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, HIGH, COLOURS = 1200, 900, 64


def figure(report: Path, lesson: str, line: str) -> bytes:
    """The PNG that the cell with `line` in it made."""
    notebook = nbformat.read(report / "notebooks" / f"{lesson}.ipynb", as_version=4)
    for cell in notebook.cells:
        if line in cell.source:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    raise SystemExit(f"{lesson} has no picture by a cell with {line}")


def screenshot(page: Path, out: Path) -> None:
    """The top of the report's first page."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"no browser for the screenshot: expected one of {', '.join(BROWSERS)} on PATH (apt install chromium)")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        command = [browser, *options, f"--window-size={WIDE},{HIGH}", f"--screenshot={out.resolve()}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(out) as whole:
        small = whole.convert("RGB").quantize(COLOURS)  # text needs no more, and the file is a third as large
    small.save(out, optimize=True)


def terminal(command: str, printed: str) -> str:
    """A terminal with the command and what it printed, as SVG; the viewer's own fonts, so that nothing is fetched."""
    lines = [f"$ {command}", *(line.rstrip() for line in printed.splitlines() if not line.startswith("make"))]
    console = Console(record=True, width=max(map(len, lines)), file=open("/dev/null", "w"))  # noqa: SIM115 - the recording counts
    console.print(Text("\n".join(lines)), soft_wrap=True)
    return console.export_svg(title="qlab", code_format=re.sub(r"@font-face \{\{.*?\}\}|<!--.*?-->", "", CONSOLE_SVG_FORMAT, flags=re.S))


def main() -> None:
    report, log = map(Path, sys.argv[1:])
    for name, (lesson, line) in FIGURES.items():
        (DOCS / name).write_bytes(figure(report, lesson, line))
    screenshot(report / "index.html", DOCS / "report.png")
    (DOCS / "run.svg").write_text(terminal("make run", log.read_text()))


if __name__ == "__main__":
    main()
