"""The report in a real browser: nothing is asked of the network, everything is reachable, and every control moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browsing import COLOURS, EVERY, WIDTHS, Visit, move_every_control, overflow, violations

PAGES = ("index.html", "01_principles.html", "glossary.html")  # and 02_awq.html, which is the first lesson again
# What is looked for on a page as it is wide and coloured. A tablet shows and colours what a phone does, and its boxes scroll less.
LOOKS = {
    ("desk", "light"): EVERY,
    ("desk", "dark"): COLOURS,
    ("tablet", "light"): "",
    ("phone", "light"): EVERY,
    ("phone", "dark"): COLOURS,
}


@pytest.fixture
def visit(browser: Any, site: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A tab, on the page that a test names; it must ask for nothing and report no error."""
    width, scheme = getattr(request, "param", ("desk", "light"))
    tab = Visit(browser, site.as_uri(), width, scheme)
    yield tab
    assert tab.left == []
    assert tab.errors == []
    tab.close()


@pytest.mark.parametrize(
    ("visit", "name"),
    [(look, name) for look in LOOKS for name in PAGES] + [(("desk", "light"), "02_awq.html")],
    indirect=["visit"],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
def test_a_page_is_accessible_and_no_wider_than_its_window(visit: Visit, site: Path, name: str, request: pytest.FixtureRequest) -> None:
    visit.page.goto((site / name).as_uri())
    assert overflow(visit.page) <= 0
    if rules := LOOKS[request.node.callspec.params["visit"]]:
        assert violations(visit.page, rules) == []


def test_every_width_is_looked_at() -> None:
    assert {width for width, _ in LOOKS} == set(WIDTHS)


@pytest.mark.parametrize("visit", [("desk", "light"), ("phone", "light")], indirect=True, ids="-".join)
def test_every_control_moves_by_mouse_and_keyboard(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    assert move_every_control(visit.page) == 4


def test_a_slider_stands_in_order_and_says_its_value(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    slider = visit.page.get_by_role("slider", name="bits")
    assert slider.get_attribute("aria-valuetext") == "4"
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "2"
    slider.press("End")
    assert slider.get_attribute("aria-valuetext") == "8"
    assert visit.page.get_by_role("img", name="q_proj at 8 bits").count() == 1


def test_a_control_answers_within_100_ms(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    slider = visit.page.get_by_role("slider", name="bits")
    took = slider.evaluate(
        """field => { const start = performance.now(); field.value = 0; field.dispatchEvent(new Event('input', {bubbles: true}));
        field.closest('.qlab-explore').getBoundingClientRect(); return performance.now() - start; }"""
    )
    assert took < 100


@pytest.mark.parametrize("visit", [("desk", "dark"), ("desk", "light")], indirect=True, ids="-".join)
def test_figures_and_paper_follow_the_colour_scheme(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    colour = "part => getComputedStyle(part).%s.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    paper = visit.page.locator("body").evaluate(colour % "backgroundColor")
    ink = visit.page.locator(".qlab-figure svg text").first.evaluate(colour % "fill")
    assert (paper < ink) == visit.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert abs(paper - ink) > 300


def test_code_is_folded_until_the_switch_is_used(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    code = visit.page.locator(".highlight").first
    assert not code.is_visible()
    switch = visit.page.get_by_role("button", name="Show all code")
    switch.press("Enter")
    assert code.is_visible()
    assert violations(visit.page) == []  # the colours of the code too
    switch.click()
    assert not code.is_visible()


def test_a_solution_opens_and_closes(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    solution = visit.page.get_by_text("hidden at first")
    assert not solution.is_visible()
    visit.page.get_by_text("Solution", exact=True).click()
    assert solution.is_visible()


def test_a_prediction_stands_with_its_choices_and_its_answer_opens(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    assert visit.page.locator(".qlab-choices li").all_inner_texts() == ["RTN", "GPTQ", "they are equal"]
    answer = visit.page.get_by_text("Measured: GPTQ. RTN 0.06, GPTQ 0.26.")
    assert not answer.is_visible()
    visit.page.get_by_text("What was measured").first.press("Enter")
    assert answer.is_visible()
    assert visit.page.get_by_text("I predict this").count() == 0


def test_a_bit_is_turned_and_stands_on_paper(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    sign = visit.page.get_by_role("toolbar", name="Bits of FP16").get_by_role("button").first
    said = visit.page.locator('[data-format="FP16"] output')
    assert said.inner_text().startswith("−1 × 2^−5 × ")
    sign.press("Enter")
    assert said.inner_text().startswith("1 × 2^−5 × ")
    assert sign.get_attribute("aria-pressed") == "false"
    visit.page.emulate_media(media="print")
    assert sign.is_visible()
    assert not visit.page.get_by_role("button", name="As it is stored").is_visible()


def test_a_figure_enlarges_and_gives_way(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    small = visit.page.locator(".qlab-picture svg").first.bounding_box()
    visit.page.get_by_role("button", name="Enlarge").first.click()
    dialog = visit.page.get_by_role("dialog")
    assert dialog.locator("svg").bounding_box()["width"] > small["width"]
    visit.page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert visit.page.locator("dialog svg").count() == 0


def test_tables_sort_by_number_and_by_word(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "index.html").as_uri())

    def first_column() -> list[str]:
        return visit.page.locator(".scroll table").first.locator("tbody tr td:first-child").all_inner_texts()

    head = visit.page.get_by_role("region", name="Results", exact=True)
    head.get_by_role("button", name="MB on disk").press("Enter")
    assert first_column() == ["GGUF Q8_0", "NF4 by bitsandbytes", "FP16 original"]
    head.get_by_role("button", name="MB on disk").click()
    assert first_column() == ["FP16 original", "NF4 by bitsandbytes", "GGUF Q8_0"]
    head.get_by_role("button", name="format").click()
    assert first_column() == ["FP16 original", "GGUF Q8_0", "NF4 by bitsandbytes"]
    assert visit.page.locator("th[aria-sort]").count() == 1


def test_the_results_are_seen_whole_at_1280_pixels(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "index.html").as_uri())
    frame = visit.page.get_by_role("region", name="Results", exact=True)
    assert "KL to FP16" in frame.inner_text()
    assert frame.evaluate("frame => frame.scrollWidth - frame.clientWidth") == 0


def test_claims_are_chosen_by_verdict(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "index.html").as_uri())
    rows = visit.page.locator("#claims tbody tr:visible")
    every = rows.count()
    visit.page.get_by_label("Show").select_option("not testable here")
    assert 0 < rows.count() < every
    assert set(visit.page.locator("#claims tbody tr:visible .tag").all_inner_texts()) == {"not testable here"}


def test_the_way_through_the_lessons(visit: Visit, site: Path) -> None:
    page = visit.page
    page.goto((site / "index.html").as_uri())
    page.get_by_role("link", name="1. Principles").click()
    page.locator(".bar [rel=next]").click()
    assert page.url.endswith("02_awq.html")
    page.locator(".bar [rel=prev]").click()
    page.locator(".outline a").nth(1).click()
    assert page.url.endswith("01_principles.html#1.2-Tables-and-texts")
    assert page.locator(".outline").bounding_box()["y"] >= 0  # it stays in view
    page.locator("main a[href^='glossary.html#']").first.click()
    assert page.locator("dt:target").inner_text().startswith("grid")


def test_the_section_that_is_read_is_marked_wherever_the_page_is_scrolled_to(visit: Visit, site: Path) -> None:
    page = visit.page
    page.goto((site / "01_principles.html").as_uri())
    marked = "() => document.querySelector('.outline .here')?.getAttribute('href').slice(1)"
    headings = page.evaluate("[...document.querySelectorAll('main h2[id]')].map(h => [h.id, h.getBoundingClientRect().top + scrollY])")
    farthest = page.evaluate("document.documentElement.scrollHeight - innerHeight")
    places = [top + 100 for _, top in headings if top + 100 < farthest - 10]
    assert len(places) > 1
    for place in [*places, *reversed(places)]:
        read = [name for name, top in headings if top < place + 300][-1]  # a third of 900 pixels
        page.evaluate(f"scrollTo(0, {place})")
        page.wait_for_function(f"({marked})() === {read!r}", timeout=5000)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_function(f"({marked})() === {headings[-1][0]!r}", timeout=5000)


def test_tables_of_a_lesson_are_whole_and_an_edge_behind_which_one_goes_on_has_a_shadow(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    frames = visit.page.locator(".scroll")
    assert frames.evaluate_all("frames => frames.filter(frame => frame.scrollHeight > frame.clientHeight + 20).length") == 0
    visit.page.goto((site / "index.html").as_uri())
    claims = visit.page.locator(".scroll.tall")
    assert claims.evaluate("frame => frame.scrollHeight > 2 * frame.clientHeight")
    edges = "frame => getComputedStyle(frame).backgroundAttachment"
    assert claims.evaluate(edges) == "local, local, local, scroll, scroll, scroll"


def test_on_paper_the_first_picture_stands_with_the_numbers_of_all(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "01_principles.html").as_uri())
    visit.page.emulate_media(media="print")
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    control = visit.page.locator(".qlab-explore").first
    assert control.locator("svg").is_visible()
    assert not control.locator("form").is_visible()
    assert control.locator("table tbody tr").count() == 12
    assert control.locator("table").is_visible()
    assert not visit.page.locator(".bar").is_visible()
    assert visit.page.pdf(format="A4")[:4] == b"%PDF"
