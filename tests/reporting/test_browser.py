"""The page in a real browser, from disk."""

from pathlib import Path
from typing import Any

import pytest

from tests.reporting.browser import Browser

pytestmark = pytest.mark.browser

SHAPE = """(() => ({
  width: document.documentElement.scrollWidth,
  figures: [...document.querySelectorAll("figure:not([hidden]) svg")].map((svg) => {
    const box = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll("path, use, text")];
    const inside = marks.some((mark) => mark.getBoundingClientRect().width > 0);
    return [Math.round(box.width), Math.round(box.height), inside];
  }),
}))()"""

COLUMN = """(name, column) =>
  [...document.querySelectorAll(`#${name} tbody tr`)]
    .map((row) => row.cells[column].textContent.trim())"""


def column(browser: Browser, table: str, index: int) -> list[str]:
    return browser.ask(f"({COLUMN})({table!r}, {index})")


def click(browser: Browser, expression: str) -> None:
    """Click as a hand does: in the middle of what is on the screen."""
    browser.ask(f"{expression}.scrollIntoView({{block: 'center', inline: 'center'}})")
    box: Any = browser.ask(f"(({expression}).getBoundingClientRect()).toJSON()")
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)


def is_sorted(texts: list[str]) -> bool:
    numbers = [float(text.split()[0]) for text in texts]
    return len(set(numbers)) > 3 and numbers == sorted(numbers)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scripts", [True, False])
def test_figures_show_and_nothing_overflows(
    browser: Browser, page_path: Path, width: int, scripts: bool
) -> None:
    browser.open(page_path, width, scripts=scripts)
    shape = browser.ask(SHAPE)
    assert shape["width"] <= width
    assert len(shape["figures"]) == 10
    for wide, high, has_marks in shape["figures"]:
        assert 300 < wide <= width
        assert high > 90
        assert has_marks
    assert browser.complaints() == []


def test_a_click_on_a_head_sorts(browser: Browser, page_path: Path) -> None:
    browser.open(page_path, 1280)
    head = "document.querySelectorAll('#arms th')[2]"
    click(browser, f"{head}.firstChild")
    assert browser.ask(f"{head}.getAttribute('aria-sort')") == "descending"
    assert is_sorted(column(browser, "arms", 2)[::-1])
    click(browser, f"{head}.firstChild")
    assert is_sorted(column(browser, "arms", 2))
    assert browser.complaints() == []


def test_numbers_sort_as_numbers_and_dashes_come_last(browser: Browser, page_path: Path) -> None:
    browser.open(page_path, 1280)
    browser.ask("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    click(browser, "document.querySelectorAll('#trials-table th')[1].firstChild")
    seeds = column(browser, "trials-table", 1)
    assert seeds == sorted(seeds, key=int, reverse=True)
    for _ in range(2):
        click(browser, "document.querySelectorAll('#arms th')[4].firstChild")
        dashes = [text == "\N{EN DASH}" for text in column(browser, "arms", 4)]
        assert dashes == sorted(dashes)
        assert sum(dashes) == 4


def test_the_filter_keeps_what_matches(browser: Browser, page_path: Path) -> None:
    browser.open(page_path, 1280)
    browser.ask(
        "(() => { const field = document.querySelector('#trials input');"
        " field.value = 'GC diverged'; field.dispatchEvent(new Event('input')); })()"
    )
    rows = "[...document.querySelectorAll('#trials-table tbody tr')].filter((row) => !row.hidden)"
    assert browser.ask(f"{rows}.length") == 1
    told = browser.ask("document.querySelector('#trials [role=status]').textContent")
    assert told == "1 of 88 rows"


def test_a_pointer_over_a_mark_tells_its_value(browser: Browser, page_path: Path) -> None:
    browser.open(page_path, 1280)
    mark = "document.querySelector('#figure-forest-accuracy .note')"
    browser.ask(f"{mark}.scrollIntoView({{block: 'center'}})")
    box = browser.ask(f"{mark}.getBoundingClientRect().toJSON()")
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
    assert browser.ask("document.getElementById('tip').hidden") is False
    told = browser.ask("document.getElementById('tip').textContent")
    assert told == browser.ask(f"{mark}.getAttribute('aria-label')")


def test_the_metric_can_be_chosen(browser: Browser, chinese_path: Path) -> None:
    browser.open(chinese_path, 1280)
    shown = (
        "[...document.querySelectorAll('figure[data-metric]')].filter((figure) =>"
        " figure.offsetParent).map((figure) => figure.dataset.metric)"
    )
    assert set(browser.ask(shown)) == {"miou"}
    click(browser, "document.querySelector('#metric button:last-child')")
    assert set(browser.ask(shown)) == {"dice"}
    assert browser.complaints() == []


def test_without_scripts_every_metric_is_there(browser: Browser, chinese_path: Path) -> None:
    browser.open(chinese_path, 390, scripts=False)
    shape = browser.ask(SHAPE)
    assert shape["width"] <= 390
    assert len(shape["figures"]) == 2 * 4 + 1 + 4 + 2  # metrics, places, curves, A/A and power
    assert browser.complaints() == []


def test_no_name_can_run_a_script(browser: Browser, page_path: Path, tmp_path: Path) -> None:
    text = page_path.read_text(encoding="utf-8")
    evil = text.replace("<main>", "<main><script>window.evil = 1</script>")
    (tmp_path / "evil.html").write_text(evil, encoding="utf-8")
    browser.open(tmp_path / "evil.html", 1280)
    assert browser.ask("window.evil === undefined") is True
    assert any("Content Security Policy" in str(each) for each in browser.complaints())


def test_dark_pages_are_dark(browser: Browser, page_path: Path) -> None:
    browser.open(page_path, 1280, dark=True)
    color = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, color.removeprefix("rgb(").removesuffix(")").split(","))) < 60
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    assert min(map(int, browser.ask(ink).removeprefix("rgb(").removesuffix(")").split(","))) > 120
