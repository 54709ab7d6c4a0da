"""A small lesson with everything that a lesson may hold, executed as lessons are: for pages that are looked at in a browser."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from qlab.workbook.reader.about import NOTEBOOKS

OPENING = """# 1. Small: a lesson for the tests

**What this lesson proves:** that every part of a page works.

*Time:* a minute. *You need:* nothing, see [the paper](https://arxiv.org/abs/2210.17323)."""
FORMULA = r"""## 1.1 A formula

Minimise $\lVert XW - X\hat{W} \rVert^2$ over the grid, with perplexity as the measure and `perplexity` as code:

$$\delta = -\frac{w_q - \hat{w}_q}{[H^{-1}]_{qq}} \cdot (H^{-1})_{:,q}$$"""
PREDICT = """
from qlab.show.prediction import predict

which = predict("Which error is larger at 4 bits?", ["RTN", "GPTQ", "they are equal"])
share = predict("How much of RTN's error is left?", between=(0, 100), unit="%")"""
HELD = """
which.held_against("GPTQ", "RTN 0.06, GPTQ 0.26.")
share.held_against(416.0)"""
CONTROL = """
from qlab.show import figures
from qlab.show.widgets import explore

def by_bits(bits, layer):
    return figures.bars({"RTN": 2.0 ** -bits, "GPTQ": 1.5 ** -bits + len(layer) / 100}, f"{layer} at {bits} bits", "error (nats)")

explore(by_bits, bits=[4, 8, 3, 2], layer=["q_proj", "up_proj", "down_proj_long"])"""
FIGURE = """
import pandas as pd
table = pd.DataFrame([{"layer": f"{n}.{k}", "way": w, "error": n + 1.0} for n in range(4) for k in ("q", "k") for w in ("RTN", "GPTQ")])
figures.grouped_bars(table, "layer", "error", "way", "GPTQ is nearer in every layer", "relative squared error", log=True)"""
HEATMAP = """
grid = pd.DataFrame([[0.1, 2.0], [3.0, 0.4]], index=pd.Index([0, 1], name="block"), columns=pd.Index(["q", "k"], name="layer"))
explore(lambda format: figures.heatmap(grid * len(format), f"Lost: {format}", "%"), format=["AWQ", "GGUF"])"""
TABLE = """
from qlab.show.tables import styled
styled(pd.DataFrame({"a long name of a column": ["10.0 ± 1", "9.0 ± 2", "1,000"] , **{f"column {n}": [n, 2, 3] for n in range(14)}}))"""
FILES = """explore(lambda file: {"a": "first\\n" * 3, "b": "second " * 60}[file], file=["a", "b"])"""
BITS = """
import torch
from qlab.show.methods.bits import turn_bits
from qlab.workbook.drawn.bits import stored

row = torch.linspace(-0.05, 0.04, 64)
turn_bits({name: (float(row[place]), stored(row, place, 32)) for place, name in enumerate(("first", "second"))})"""
CHECK = """
from qlab.workbook.exercises.answer import check
check("bits", 4, 4, "Four.")"""
SOLUTION = """## Exercise

<details><summary>Solution</summary>

The solution is **hidden at first**: $2^b$ levels.

</details>"""


EXERCISES_OPENING = """# 9. Exercises: those of lesson 3, without the experiments

**What this lesson proves:** that every answer gets what it should.

*Time:* a minute. *You need:* nothing."""
GIVEN = """
import os
import torch

means = {"RTN": 3.0, "GPTQ": 1.5}
print("process", os.getpid())"""
OF_LESSON_3 = ("b8fcc891", "bbfadc87", "write-gap", "write-check")  # its cells with a question and with the function to write


def exercises_lesson() -> NotebookNode:
    """A lesson with cells of lesson 3, as they stand there."""
    own = {cell.id: cell for cell in nbformat.read(NOTEBOOKS / "03_gptq.ipynb", as_version=4).cells}
    parameters = new_code_cell('model = "embedded"  # the model')
    parameters.metadata["tags"] = ["parameters"]
    cells = [new_markdown_cell(EXERCISES_OPENING), parameters, new_code_cell(GIVEN.strip()), *(own[name] for name in OF_LESSON_3)]
    return notebook_of(cells)


def small_lesson() -> NotebookNode:
    """The lesson as it would lie in notebooks/, clean."""
    parameters = new_code_cell('model = "embedded"  # the model')
    parameters.metadata["tags"] = ["parameters"]
    rest = [PREDICT, CONTROL, HELD, FIGURE, "## 1.2 Tables and texts", HEATMAP, TABLE, FILES, BITS, SOLUTION, CHECK]
    cells = [new_markdown_cell(OPENING), parameters, new_markdown_cell(FORMULA)]
    cells += [new_markdown_cell(text) if text.startswith("##") else new_code_cell(text.strip()) for text in rest]
    return notebook_of(cells)


def notebook_of(cells: list[NotebookNode]) -> NotebookNode:
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def executed(file: Path) -> Path:
    """The lesson executed, at `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    notebook = small_lesson()
    NotebookClient(notebook, timeout=120).execute()
    nbformat.write(notebook, file)
    return file
