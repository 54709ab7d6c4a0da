"""The README's pictures, from a report and what the run that made it printed: `make pictures`, or

    python docs/pictures.py build/report build/run.log

Two figures are taken out of executed lessons; they and the screenshot are made by Chromium (any, on PATH), the terminal by rich.
"""

from __future__ import annotations

import math
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
    "bits.png": ("01_principles", "titles.ladder("),
    "size.png": ("07_benchmarks", 'titles.front(points, "size")'),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, HIGH, MARGIN, COLOURS = 1200, 900, 10, 64


def figure(report: Path, lesson: str, line: str) -> str:
    """The SVG that the cell with `line` in it drew."""
    notebook = nbformat.read(report / "notebooks" / f"{lesson}.ipynb", as_version=4)
    for cell in notebook.cells:
        if line in cell.source:
            for output in cell.get("outputs", []):
                if found := re.search(r"<svg.*?</svg>", output.get("data", {}).get("text/html", ""), re.S):
                    return found[0]
    raise SystemExit(f"{lesson} has no picture by a cell with {line}")


def figure_page(svg: str, page: Path) -> tuple[int, int]:
    """Write a page that holds one figure, in the colours of light paper; its size in pixels."""
    wide, high = (math.ceil(float(found) * 4 / 3) + 2 * MARGIN for found in re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2])
    style = f"body {{ margin: {MARGIN}px; background: white; color: #1d2429; }}"
    page.write_text(f"<!doctype html><meta charset=utf-8><style>{style}</style>{svg}")
    return wide, high


def screenshot(page: Path, out: Path, wide: int, high: int) -> None:
    """The top of a page."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"no browser for the pictures: expected one of {', '.join(BROWSERS)} on PATH (apt install chromium)")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        command = [browser, *options, f"--window-size={wide},{high}", f"--screenshot={out.resolve()}", page.resolve().as_uri()]
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
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "figure.html"
            screenshot(page, DOCS / name, *figure_page(figure(report, lesson, line), page))
    screenshot(report / "index.html", DOCS / "report.png", WIDE, HIGH)
    (DOCS / "run.svg").write_text(terminal("make run", log.read_text()))


if __name__ == "__main__":
    main()
