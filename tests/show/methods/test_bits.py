"""The page of bits: what it says without script, and what its script says of the same bits in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qlab.show.methods import bits as page_of_bits
from qlab.show.methods.bits import error, finding, number, said, turn_bits
from qlab.workbook.drawn.bits import FLOATS, Stored, chosen_weights, stored
from tests.browsing import violations

ROW = 0.03 * torch.randn(256, generator=torch.Generator().manual_seed(2))
WEIGHTS = {name: (float(ROW[place]), stored(ROW, place, 128)) for name, place in chosen_weights(ROW, 128).items()}


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found: list[dict[str, str]] = []
    monkeypatch.setattr(page_of_bits, "display", lambda data, raw: found.append(data))
    turn_bits(WEIGHTS)
    return found[0]


@pytest.fixture
def page(output: dict[str, str], browser: Any) -> Iterator[Any]:
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.set_content(f"<!doctype html><html lang='en'><title>Bits</title><main><h1>Bits</h1>{output['text/html']}</main></html>")
    yield tab
    tab.close()


def words(page: Any, name: str) -> str:
    return str(page.locator(f'[data-format="{name}"] output').inner_text())


def test_numbers_and_products() -> None:
    assert [number(value) for value in (0.0, 0.328125, -0.019531, 1e-7, 3.5e38, float("inf"), float("nan"))] == [
        "0", "0.32813", "−0.019531", "1 × 10^−7", "3.5 × 10^38", "infinity", "no number (NaN)",
    ]  # fmt: skip
    assert said(Stored("FP16", "1010010100000000")) == "−1 × 2^−6 × 1.25 = −0.019531"
    assert said(Stored("FP16", "0000001000000000")) == "1 × 2^−14 × 0.5 = 3.0518 × 10^−5"
    assert said(Stored("INT4", "1011", 0.5, 8)) == "(11 − 8) × 0.5 = 1.5"
    assert error(1.0, Stored("INT4", "1011", 0.5, 8)) == "50 %"


def test_without_script_the_first_weight_stands_there(output: dict[str, str]) -> None:
    weight, formats = WEIGHTS["largest"]
    assert output["text/plain"].splitlines()[0] == finding(weight, formats)
    assert all(f"<output>{said(found)}; error {error(weight, found)}</output>" in output["text/html"] for found in formats)
    assert len(re.findall(r'aria-pressed="(?:true|false)"', output["text/html"])) == 32 + 16 + 16 + 8 + 4
    assert "http" not in output["text/html"]


def test_turned_bits_say_what_python_says_of_them(page: Any) -> None:
    weight, formats = WEIGHTS["largest"]
    for found in formats:
        for place in (0, 1, len(found.bits) // 2, len(found.bits) - 1):
            bit = page.locator(f'[data-format="{found.format}"] button').nth(place)
            before = words(page, found.format)
            bit.click()
            turned = found.bits[:place] + ("0" if found.bits[place] == "1" else "1") + found.bits[place + 1 :]
            now = Stored(found.format, turned, found.scale, found.zero)
            assert words(page, found.format) == f"{said(now)}; error {error(weight, now)}", (found.format, place)
            assert bit.get_attribute("aria-pressed") == ("true" if turned[place] == "1" else "false")
            assert bit.get_attribute("aria-label").endswith(f": {turned[place]}")
            bit.click()
            assert words(page, found.format) == before == f"{said(found)}; error {error(weight, found)}"


def test_by_keyboard_another_weight_and_back(page: Any) -> None:
    bit = page.locator('[data-format="FP8 E4M3"] button')
    bit.first.focus()
    page.keyboard.press("ArrowRight")
    assert bit.nth(1).evaluate("part => part === document.activeElement")
    page.keyboard.press("Space")
    weight, formats = WEIGHTS["largest"]
    assert page.locator(".changed").count() == 1
    assert page.locator(".qlab-finding").inner_text() != finding(weight, formats)
    page.get_by_role("button", name="As it is stored").press("Enter")
    assert page.locator(".changed").count() == 0
    assert page.locator(".qlab-finding").inner_text() == finding(weight, formats)
    page.get_by_role("combobox", name="weight").select_option(index=4)
    weight, formats = WEIGHTS["smallest"]
    assert page.locator(".qlab-finding").inner_text() == finding(weight, formats)
    assert [words(page, found.format) for found in formats] == [f"{said(found)}; error {error(weight, found)}" for found in formats]


@pytest.mark.parametrize("exponent", ["0", "1"])
def test_exponents_of_zeros_and_of_ones_say_what_python_says_of_them(page: Any, exponent: str) -> None:
    """Numbers below the smallest power of two, infinity, and what is no number."""
    weight, formats = WEIGHTS["largest"]
    for found in formats[:4]:
        width = FLOATS[found.format].exponent
        for place in range(1, 1 + width):
            if found.bits[place] != exponent:
                page.locator(f'[data-format="{found.format}"] button').nth(place).click()
        now = Stored(found.format, found.bits[0] + width * exponent + found.bits[1 + width :], found.scale, found.zero)
        assert words(page, found.format) == f"{said(now)}; error {error(weight, now)}"


def test_it_is_accessible_and_no_wider_than_a_phone(page: Any) -> None:
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
