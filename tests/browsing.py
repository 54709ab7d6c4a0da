"""What the tests in a real browser share: pages that remember what they asked of the network, accessibility, controls that are moved."""

from __future__ import annotations

import shutil
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), "")
STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
EVERY, COLOURS, OTHERS = "every rule", "rules on colours", "the other rules"  # colours take two thirds of the time, whatever the width
ON_COLOURS = ["color-contrast", "link-in-text-block"]
WIDTHS = {"desk": (1280, 900), "tablet": (800, 1000), "phone": (390, 800)}


def lacking() -> str:
    """Why there can be no browser here; empty where there can."""
    if not CHROMIUM:
        return "no Chromium on this machine (apt install chromium)"
    if find_spec("playwright") is None or find_spec("axe_playwright_python") is None:
        return "no playwright in this environment: 'make browser' installs it"
    return ""


class Visit:
    """A tab of a browser, and what went wrong in it: requests to anywhere but `home`, errors on the console and in scripts."""

    def __init__(self, browser: Any, home: str, width: str = "desk", scheme: str = "light") -> None:
        wide, high = WIDTHS[width]
        context = browser.new_context(viewport={"width": wide, "height": high}, color_scheme=scheme)
        self.page, self.left, self.errors = context.new_page(), list[str](), list[str]()
        self.page.on("request", lambda request: self.left.append(request.url) if elsewhere(request.url, home) else None)
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def close(self) -> None:
        self.page.context.close()


def elsewhere(address: str, home: str) -> bool:
    return not address.startswith((home, "data:", "blob:", "about:"))


def violations(page: Any, rules: str = EVERY) -> list[str]:
    """What axe-core finds against WCAG 2.1 A and AA, by every rule, by those on COLOURS, or by the OTHERS."""
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    options: dict[str, Any] = {"runOnly": STANDARDS, "resultTypes": ["violations"]}  # of what holds it need not keep every place
    if rules == COLOURS:
        options["runOnly"] = ON_COLOURS
    if rules == OTHERS:
        options["rules"] = {rule: {"enabled": False} for rule in ON_COLOURS}
    found = page.evaluate("options => axe.run(document, options).then(found => found.violations)", options)
    return [f"{rule['id']}: {node['html'][:200]} {node['failureSummary'][:300]}" for rule in found for node in rule["nodes"]]


def overflow(page: Any) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def move_every_control(page: Any) -> int:
    """Move each field of each control by the keyboard and by the mouse and see its picture change; returns how many fields there were."""
    fields = 0
    for control in page.query_selector_all(".qlab-explore"):
        picture = control.query_selector(".qlab-picture")
        for field in control.query_selector_all("input, select"):
            fields += 1
            field.scroll_into_view_if_needed()
            name = field.evaluate("field => field.closest('label').querySelector('span').textContent")
            seen = {picture.inner_html()}
            for key in ("End", "Home", "ArrowDown", "ArrowUp", "ArrowRight"):
                field.focus()
                page.keyboard.press(key)
                seen.add(picture.inner_html())
            assert len(seen) > 1, f"{name}: no key changes the picture"
            before = picture.inner_html()
            if field.evaluate("field => field.tagName") == "SELECT":
                options = field.query_selector_all("option")
                at = int(field.evaluate("field => field.selectedIndex"))
                field.select_option(index=(at + 1) % len(options))
            else:
                field.evaluate("field => { field.value = field.min; field.dispatchEvent(new Event('input', {bubbles: true})) }")
                before, box = picture.inner_html(), field.bounding_box()
                page.mouse.click(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
            assert picture.inner_html() != before, f"{name}: the mouse does not change the picture"
    return fields
