"""Exercises as a reader does them in JupyterLab: empty, wrong and right answers, a cell that is interrupted, a kernel that is restarted."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from qlab.workbook.exercises.checks import WRITTEN
from tests.browser.lab import EXERCISES, RUNS, STARTS, Lab, open_notebook
from tests.browsing import Visit

QUESTION, FUNCTION = 'check_answer("factor"', 'check_written("03_gptq"'  # in the cells that judge
OUTPUT = ".jp-OutputArea-output"
EMPTY = ("answer = None", "Not answered yet: set the answer in the cell above")
ANSWERS = {
    EMPTY[0]: EMPTY[1],
    'answer = means["GPTQ"] / means["RTN"]': "0.5 times is too small. Divide RTN's mean error by GPTQ's.",
    'answer = "2"': "The answer should be a number of times; '2' is none.",
    'answer = means["RTN"] / means["GPTQ"]': "Right.",
}
PLAIN = """def quantize_columns(weight, factor, scale, zero, bits):
    codes = ((weight / scale[:, None]).round() + zero[:, None]).clamp(0, 2**bits - 1)
    return (codes - zero[:, None]) * scale[:, None]"""
FAILING = """def quantize_columns(weight, factor, scale, zero, bits):
    return weight / 0 + nothing"""
RIGHT = inspect.getsource(WRITTEN["03_gptq"].solution).replace(": Tensor", "").replace(" -> Tensor", "").replace(": int", "")
FUNCTIONS = {
    "": "Not written yet: replace the line “raise NotImplementedError” with your own",
    PLAIN: "This is plain rounding: no error reaches the columns after it.",
    FAILING: "Your function stops with NameError: name 'nothing' is not defined, at the line: return weight / 0 + nothing",
    RIGHT: "Right: it does what qlab's own function does in all 4 cases.",
}


def cell_with(page: Any, text: str) -> Any:
    """The code cell whose code has this text in it."""
    return page.locator(".jp-CodeCell").filter(has=page.locator(".cm-content", has_text=text))


def write(page: Any, cell: Any, code: str) -> None:
    """Put other code into a cell, as by pasting it."""
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(code)


def run(page: Any, cell: Any) -> None:
    cell.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")


def menu(page: Any, name: str, item: str) -> None:
    page.get_by_role("menuitem", name=name, exact=True).click()
    page.get_by_text(item, exact=True).first.click()


def run_every_cell(page: Any) -> None:
    """Run all, and wait for what the last cell says."""
    menu(page, "Run", "Run All Cells")
    cell_with(page, FUNCTION).locator(OUTPUT).first.wait_for(timeout=RUNS * 1000)


@pytest.fixture
def page(visit: Visit, lab: Lab) -> Any:
    """The lesson with the exercises as it came, its cells run as they are."""
    assert lab.qlab("afresh", "09").returncode == 0
    visit.page.set_viewport_size({"width": 1280, "height": 3000})  # JupyterLab keeps only cells that are in view
    open_notebook(visit, lab, EXERCISES)
    run_every_cell(visit.page)
    return visit.page


def said(page: Any, where: str, text: str) -> None:
    """Wait until the cell that judges says this, and nothing else."""
    cell_with(page, where).locator(OUTPUT, has_text=text).wait_for(timeout=RUNS * 1000)
    assert cell_with(page, where).locator(OUTPUT).count() == 1


def test_every_answer_and_every_function_gets_what_it_should_and_progress_is_shown(page: Any, lab: Lab) -> None:
    said(page, QUESTION, EMPTY[1])
    said(page, FUNCTION, FUNCTIONS[""])
    written = "answer = None"
    for code, text in ANSWERS.items():
        write(page, cell_with(page, written), code)
        written = code
        run(page, cell_with(page, written))
        run(page, cell_with(page, QUESTION))
        said(page, QUESTION, text)
    for code, text in FUNCTIONS.items():
        if code:
            write(page, cell_with(page, "def quantize_columns"), code)
            run(page, cell_with(page, "def quantize_columns"))
            run(page, cell_with(page, FUNCTION))
        said(page, FUNCTION, text)
    assert cell_with(page, FUNCTION).locator("table").count() == 0  # a case that fails was shown before, and is gone
    page.keyboard.press("Control+s")
    page.wait_for_selector(".jp-mod-current:not(.jp-mod-dirty)")
    page.goto(f"{lab.home}/qlab/")
    assert page.get_by_text("2 of 2 exercises right").count() == 1
    assert lab.qlab("progress", "--erase").returncode == 0


def test_an_interrupted_cell_and_a_restarted_kernel_recover(page: Any) -> None:
    first = cell_with(page, "os.getpid")
    process = first.locator(OUTPUT).inner_text()
    write(page, cell_with(page, "answer = None"), "import time\nanswer = 2\nwhile True:\n    time.sleep(0.1)")
    endless = cell_with(page, "while True")
    run(page, endless)
    endless.get_by_text("[*]").wait_for(timeout=STARTS * 1000)
    menu(page, "Kernel", "Interrupt Kernel")
    endless.locator(OUTPUT, has_text="KeyboardInterrupt").wait_for(timeout=STARTS * 1000)
    run(page, cell_with(page, QUESTION))  # the same kernel goes on, with what the cell had done
    said(page, QUESTION, "Right.")
    assert first.locator(OUTPUT).inner_text() == process
    write(page, endless, "answer = 1")
    menu(page, "Kernel", "Restart Kernel and Run All Cells…")
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    said(page, QUESTION, "1 times is too small.")
    said(page, FUNCTION, FUNCTIONS[""])
    assert first.locator(OUTPUT).inner_text() != process
