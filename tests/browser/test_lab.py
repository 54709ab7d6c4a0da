"""`qlab lab` in a real browser, on a copy of this repository: the contents, lessons on copies, controls, progress, afresh."""

from __future__ import annotations

from typing import Any

import nbformat

from qlab.workbook.reader.about import NOTEBOOKS, about, lesson_names
from tests.browser.lab import OWN, RUNS, SMALL, STARTS, Lab, open_notebook, run_all, scroll_until
from tests.browsing import Visit, move_every_control, overflow, violations

FIELDS = ".qlab-explore input, .qlab-explore select"
KINDS = "cells => cells.map(cell => cell.className.match(/jp-(Code|Markdown|Raw)Cell/)[0])"


def test_the_address_leads_to_the_contents(visit: Visit, lab: Lab) -> None:
    assert visit.page.url.startswith(f"{lab.home}/qlab/")
    assert visit.page.locator(".lessons h3").count() == len(lesson_names()) + len(OWN)
    assert visit.page.get_by_text(about(NOTEBOOKS / "01_principles.ipynb").title).count() == 1
    assert overflow(visit.page) <= 0
    assert violations(visit.page) == []
    assert visit.errors == []
    visit.page.get_by_role("link", name="Glossary").first.click()
    assert visit.page.locator("dt").count() > 30


def test_who_has_no_token_sees_nothing(browser: Any, lab: Lab) -> None:
    tab = Visit(browser, lab.home)
    for page in ("/qlab/", "/qlab/glossary", "/qlab/model", "/qlab/report/index.html"):
        tab.page.goto(lab.home + page)
        assert "/login" in tab.page.url
    tab.close()


def test_a_readers_own_model_is_forecast_and_a_wrong_one_explained(visit: Visit, lab: Lab) -> None:
    page = visit.page
    page.get_by_role("link", name="what yours will take, and what can go wrong").click()
    assert page.url == f"{lab.home}/qlab/model"
    field = page.get_by_label("Model:")
    field.fill("embedded")
    page.keyboard.press("Enter")  # unlike the field's own press it does not wait for the answer, which may take a minute
    page.get_by_text("Predicted for all of them:").wait_for(timeout=RUNS * 1000)  # another process looks at the model
    assert page.locator("table").first.locator("tbody tr").count() == len(lesson_names())
    assert page.get_by_text(".venv/bin/qlab run --model embedded", exact=True).count() == 1
    for wide in (1280, 390):
        page.set_viewport_size({"width": wide, "height": 800})
        assert overflow(page) <= 0
        assert violations(page) == []
    field.fill("no/such\\model")
    page.get_by_role("button", name="What will it take?").focus()
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for(timeout=RUNS * 1000)
    assert page.get_by_role("alert").inner_text().startswith("no model ")
    assert field.input_value() == "no/such\\model"


def test_every_lesson_opens_and_nothing_asks_for_news(visit: Visit, lab: Lab) -> None:
    """In one tab, which loads JupyterLab's own scripts once."""
    for lesson in lesson_names():
        visit.page.goto(f"{lab.home}/lab/tree/workspace/{lesson}.ipynb?reset")
        visit.page.wait_for_selector(".jp-Notebook .jp-Cell h1", timeout=STARTS * 1000)
        assert visit.page.locator(".jp-Notebook .jp-Cell h1").first.inner_text().startswith(f"{int(lesson[:2])}."), lesson
        assert visit.page.get_by_role("link", name="Contents").count() >= 1, lesson
        visit.page.wait_for_timeout(500)
        assert visit.page.get_by_text("official Jupyter news").count() == 0, lesson
        assert visit.page.get_by_role("dialog").count() == 0, lesson


def test_a_lesson_runs_its_control_moves_and_progress_is_kept(visit: Visit, lab: Lab) -> None:
    before = lab.tracked()
    open_notebook(visit, lab, SMALL)
    run_all(visit)
    page = visit.page
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    cells = page.locator(".jp-Cell").evaluate_all(KINDS)
    assert move_every_control(page) == 4
    for key in ("r", "y", "0", "0", "d", "d"):  # in a notebook: make the cell raw, make it code, restart the kernel, delete the cell
        page.locator(".qlab-explore select").last.press(key)
    said = page.locator('[data-format="FP16"] output')
    assert said.inner_text().startswith("−1 × 2^−5 × ")
    page.get_by_role("toolbar", name="Bits of FP16").get_by_role("button").first.press("Space")
    assert said.inner_text().startswith("1 × 2^−5 × ")
    assert page.locator(".jp-Cell").evaluate_all(KINDS) == cells  # no key was a command of the notebook's
    assert page.get_by_role("dialog").count() == 0
    page.keyboard.press("Control+s")
    page.wait_for_selector(".jp-mod-current:not(.jp-mod-dirty)")
    # Loaded again, with the kernel stopped: the control needs neither.
    page.reload()
    page.wait_for_selector(".qlab-explore select", timeout=STARTS * 1000)
    scroll_until(page, lambda: page.locator(FIELDS).count() == 4)
    assert move_every_control(page) == 4
    assert lab.tracked() == before
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Contents").first.click()
    assert opened.value.url == f"{lab.home}/qlab/"
    page.goto(f"{lab.home}/qlab/")
    assert page.get_by_text("1 of 1 exercises right").count() == 1
    assert "1 of 1 exercises right" in lab.qlab("progress").stdout
    assert lab.qlab("progress", "--erase").returncode == 0
    page.reload()
    assert page.get_by_text("1 of 1 exercises right").count() == 0


def test_predictions_are_made_by_keyboard_and_remembered(visit: Visit, lab: Lab) -> None:
    open_notebook(visit, lab, SMALL)
    run_all(visit)
    page = visit.page
    assert page.locator(".qlab-choices").count() == 2
    assert page.locator(".qlab-choices:visible").count() == 0  # the controls have them
    cells = page.locator(".jp-Cell").evaluate_all(KINDS)
    choices = page.get_by_role("radiogroup", name="Which error is larger at 4 bits?").get_by_role("radio")
    choices.first.wait_for()  # widgets come a moment after the other outputs
    assert choices.count() == 3
    choices.first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert choices.nth(2).is_checked()
    page.keyboard.press("r")  # in a notebook: make the cell raw
    answers = page.locator(".jp-OutputArea-output details", has_text="What was measured")
    assert answers.first.get_attribute("open") is None
    page.get_by_role("button", name="I predict this").first.press("Enter")
    page.get_by_text("You predicted: they are equal. Measured: GPTQ.").wait_for()
    assert answers.first.get_attribute("open") is not None
    slider = page.get_by_role("slider", name="How much of RTN's error is left?")
    slider.press("End")
    page.get_by_role("button", name="I predict this").last.press("Enter")
    page.get_by_text("You predicted: 100 %. Measured: 416 %. It is more than you predicted.").wait_for()
    assert page.locator(".jp-Cell").evaluate_all(KINDS) == cells
    open_notebook(visit, lab, SMALL)  # again, as on another day
    run_all(visit)
    choices.first.wait_for()
    assert choices.nth(2).is_checked()


def test_afresh_brings_a_lesson_back_and_sets_the_readers_aside(lab: Lab) -> None:
    copy = lab.folder / "workspace" / f"{SMALL}.ipynb"
    original = (lab.folder / "workspace" / "01_principles.ipynb").read_text()
    copy.write_text(copy.read_text().replace("By", "My"))
    found = lab.qlab("afresh", "08")
    assert found.returncode == 0, found.stderr
    assert "set-aside" in found.stderr
    assert nbformat.read(copy, as_version=4).cells[0].source.startswith("[← 7.")
    assert (lab.folder / "workspace" / "01_principles.ipynb").read_text() == original
    assert len(list((lab.folder / "workspace" / "set-aside").iterdir())) == 1
