"""The page in a real browser: drawn, clicked, sorted, printed, and loading nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Playwright, sync_playwright
from report_content import HOSTILE, content, hostile_report, joined

from hlscore.pages.content import Content
from hlscore.pages.page import html_text
from hlscore.pages.vega import chart_script

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next((path for path in map(shutil.which, BROWSERS) if path), None)
LAUNCH: dict[str, Any] = {
    "executable_path": FOUND,
    "headless": True,
    "args": [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ],
}  # fmt: skip
CHARTS = ("heat", "bars", "tail", "stability", "cumulative-modules", "cumulative-parameters",
          "memory")  # fmt: skip

pytestmark = pytest.mark.skipif(
    FOUND is None, reason=f"no browser for the report page: install one of {', '.join(BROWSERS)}"
)


@pytest.fixture(scope="module")
def driver() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(
    driver: Playwright, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrowserContext]:
    context = driver.chromium.launch_persistent_context(
        tmp_path_factory.mktemp("profile"), **LAUNCH
    )
    yield context
    context.close()


Opener = Callable[..., Page]


@pytest.fixture
def opened(browser: BrowserContext, tmp_path: Path) -> Iterator[Opener]:
    """Opens pages; none of them may ask for anything, print, raise or violate its policy."""
    path, requests, trouble = tmp_path / "report.html", [], []
    pages: list[Page] = []

    def start(found: Content, *, width: int = 1200, dark: bool = False) -> Page:
        path.write_text(html_text(found, chart_script()), encoding="utf-8", newline="\n")
        page = browser.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append("dialog"), dialog.dismiss()))
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " event => console.error('policy: ' + event.violatedDirective))"
        )
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=20_000)
        return page

    yield start
    assert set(requests) <= {path.as_uri(), "data:,"}
    assert trouble == []
    for page in pages:
        page.close()


def text(page: Page, selector: str) -> str:
    return (page.locator(selector).first.text_content() or "").strip()


def column(page: Page, number: int) -> list[str]:
    """Texts of the shown cells of one column of the table, from 0."""
    found: list[str] = page.evaluate(
        "at => [...document.querySelectorAll('#modules tbody tr')].filter(row => !row.hidden)"
        ".map(row => row.cells[at].textContent.trim())",
        number,
    )
    return found


def marks(page: Page, chart: str, kind: str) -> Any:
    return page.locator(f"#chart-{chart} .mark-{kind}.role-mark").first.locator("path")


@pytest.mark.parametrize("width", [360, 1200])
def test_every_chart_is_drawn_and_the_page_never_scrolls_sideways(
    opened: Opener, width: int
) -> None:
    found = content(42)
    page = opened(found, width=width)
    for name in CHARTS:
        assert page.locator(f"#chart-{name} svg .role-mark path").count() > 0, name
        box = page.locator(f"#chart-{name} svg").bounding_box()
        assert box is not None
        assert box["width"] > width / 4, name
        assert box["height"] > 100, name
        assert box["x"] + box["width"] <= width, name
    assert marks(page, "heat", "rect").count() == 42
    diamonds = page.locator("#chart-heat .mark-symbol.role-mark path")
    assert diamonds.count() == len(found.full_lines)
    wide, inner, table, room = page.evaluate(
        "() => { const box = document.querySelector('.tall');"
        " return [document.documentElement.scrollWidth, innerWidth,"
        " box.scrollWidth, box.clientWidth] }"
    )
    assert wide <= inner
    assert table > room or width > 400


def test_sorting_by_click_and_by_keyboard(opened: Opener) -> None:
    page = opened(content(42))
    heads = page.locator("#modules thead button")
    by_place = column(page, 1)
    heads.nth(7).click()  # parameters, the largest first
    sizes = [int(text.replace(",", "")) for text in column(page, 7)]
    assert sizes == sorted(sizes, reverse=True)
    assert page.locator("#modules thead th").nth(7).get_attribute("aria-sort") == "descending"
    heads.nth(7).press("Enter")
    sizes = [int(text.replace(",", "")) for text in column(page, 7)]
    assert sizes == sorted(sizes)
    assert page.locator("#modules thead [aria-sort]").count() == 1
    heads.nth(1).press("Space")
    names = column(page, 1)
    assert names == sorted(names, key=lambda name: [
        (int(part) if part.isdecimal() else -1, part) for part in name.split(".")
    ])  # fmt: skip
    assert names != by_place
    heads.nth(2).click()
    assert column(page, 1) == by_place  # the highest score first, what has none last
    heads.nth(2).click()
    assert column(page, 2)[-1] == "-"
    heads.nth(0).click()
    assert column(page, 1) == by_place


def test_a_module_is_chosen_by_click_and_by_keyboard(opened: Opener) -> None:
    found = content(42)
    page = opened(found)
    names = [line.row.module for line in found.lines]
    curves = set()

    def shown() -> str:
        curves.add(page.evaluate(
            "() => [...document.querySelectorAll('#chart-tail .mark-line path, #chart-tail text')]"
            ".map(item => item.getAttribute('d') || item.textContent).join()"
        ))  # fmt: skip
        return text(page, "#one-name")

    assert shown() == names[0]
    marks(page, "heat", "rect").nth(20).click()
    page.wait_for_function(
        "name => document.querySelector('#one-name').textContent !== name", arg=names[0]
    )
    assert shown() in names[1:]
    page.locator("#chart-bars .mark-rect.role-mark").last.locator("path").nth(5).click()
    assert shown() == names[5]
    page.locator("#module").focus()
    page.keyboard.press("ArrowDown")
    assert shown() == names[6]
    page.locator("#modules tbody button").nth(9).focus()
    page.keyboard.press("Enter")
    assert shown() == names[9]
    assert page.locator("#module").input_value() == "9"
    assert page.locator("#modules tr[aria-current]").count() == 1
    assert len(curves) == 5
    facts = page.locator("#one-facts dd").all_text_contents()
    assert facts[0] == "10"
    assert facts[1] in column(page, 2)

    # The curve is that of the module.
    page.locator("#module").select_option("7")
    heights = page.evaluate(
        "() => [...document.querySelectorAll('#chart-tail .mark-symbol.role-mark path')]"
        ".map(path => Number(/,([-\\d.]+)\\)/.exec(path.getAttribute('transform'))[1]))"
    )
    values = sorted([*found.lines[7].row.tail_curve, *found.lines[7].row.hls_curve])
    heights.sort(reverse=True)  # pixels fall where values rise
    scale = (heights[0] - heights[-1]) / (values[-1] - values[0])
    wanted = [heights[0] - scale * (value - values[0]) for value in values]
    assert heights == pytest.approx(wanted, abs=2)


def test_hostile_names_stay_text(opened: Opener) -> None:
    page = opened(joined(hostile_report(), budget="0.2"))
    assert set(column(page, 1)) == {*HOSTILE, f"skipped {HOSTILE[0]}"}
    assert text(page, "h1") == page.title() == f"Where LoRA may fall short in {HOSTILE[0]}"
    assert page.locator("script").count() == 3
    assert page.locator("img").count() == 0
    labels = page.locator("#chart-heat svg text").all_text_contents()
    assert len(set(labels) & set(HOSTILE)) >= 10
    for place, name in enumerate(column(page, 1)[:-1]):
        page.locator("#module").select_option(str(place))
        assert text(page, "#one-name") == name
    marks(page, "heat", "rect").first.hover(force=True)
    assert page.locator("#tip").is_visible()
    assert any(name in text(page, "#tip") for name in HOSTILE)


def test_dark_pages_are_dark_and_paper_is_light(opened: Opener) -> None:
    page = opened(content(42), dark=True)

    def seen() -> tuple[str, set[str], set[str]]:
        """Colours of the page, of the cells of the heat map, and of its labels."""
        background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        cells, labels = (
            set(page.evaluate(
                "selector => [...document.querySelectorAll(selector)]"
                ".map(item => getComputedStyle(item).fill)", selector,
            )) for selector in ("#chart-heat .mark-rect path", "#chart-heat text")
        )  # fmt: skip
        return background, cells, labels

    dark = seen()
    page.emulate_media(color_scheme="light")
    light = seen()
    assert (dark[0], light[0]) == ("rgb(18, 24, 31)", "rgb(255, 255, 255)")
    assert not light[1] & dark[1] - {"none"}
    assert not light[2] & dark[2]
    page.emulate_media(color_scheme="dark", media="print")
    assert (seen()[0], seen()[2]) == (light[0], light[2])


def test_everything_can_be_reached_by_keyboard(opened: Opener) -> None:
    page = opened(content(8, budget="0.2"))
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline, width = page.evaluate(
            "() => { const now = document.activeElement; const style = getComputedStyle(now);"
            " return [now.id || now.className || now.closest('th, tr')?.textContent"
            " || now.tagName, style.outlineStyle, style.outlineWidth] }"
        )
        reached.add(name)
        assert name == "BODY" or (outline, width) == ("solid", "3px"), name
    assert reached >= {"skip", "module", "filter", "scroll tall", "scroll fit", "± se"}
    assert any("model.layers" in item for item in reached)


def test_without_scripts_the_page_holds_texts_and_tables(
    driver: Playwright, tmp_path: Path
) -> None:
    found = content(42)
    path = tmp_path / "report.html"
    # Chromium reads <noscript> as one with scripts does, even where the driver turns them off.
    source = re.sub("</?noscript>", "", html_text(found, chart_script()))
    path.write_text(source, encoding="utf-8", newline="\n")
    chromium = driver.chromium.launch(**LAUNCH)
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto(path.as_uri())
    assert page.get_by_text("The charts are drawn by JavaScript").is_visible()
    assert page.locator("#modules tbody tr").count() == 43
    assert page.locator("#modules tbody tr").nth(41).is_visible()
    assert page.get_by_text(found.lines[0].row.module).last.is_visible()
    for dead in (".chart", "#filter", "#one"):
        assert not page.locator(dead).first.is_visible()
    chromium.close()
