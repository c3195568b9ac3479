"""The page in a real browser: drawn, clicked, sorted, printed, and loading nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, Playwright, sync_playwright
from report_content import HOSTILE, content, hostile_report, planned

from hlscore.pages.content import Content, join
from hlscore.pages.page import html_text
from hlscore.pages.vega import chart_script

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next((path for path in map(shutil.which, BROWSERS) if path), None)
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
CHARTS = ("heat", "bars", "tail", "stability", "cumulative-modules", "cumulative-parameters",
          "memory")  # fmt: skip

pytestmark = pytest.mark.skipif(
    FOUND is None,
    reason=f"no browser for the report page: install one of {', '.join(BROWSERS)}",
)


@dataclass
class Watched:
    """A page with everything that it did.

    Attributes:
        page: The page.
        requests: Addresses that it asked for.
        trouble: Console messages, errors and dialogs.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        """Text of the first element."""
        return (self.page.locator(selector).first.text_content() or "").strip()

    def column(self, number: int) -> list[str]:
        """Texts of the shown cells of one column of the table, from 0."""
        found: list[str] = self.page.evaluate(
            "at => [...document.querySelectorAll('#modules tbody tr')].filter(row => !row.hidden)"
            ".map(row => row.cells[at].textContent.trim())",
            number,
        )
        return found

    def curve(self) -> str:
        """Paths of the lines of the tail curve and the labels of its axes."""
        found: str = self.page.evaluate(
            "() => [...document.querySelectorAll('#chart-tail .mark-line path, #chart-tail text')]"
            ".map(item => item.getAttribute('d') || item.textContent).join()"
        )
        return found


@pytest.fixture(scope="module")
def driver() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(
    driver: Playwright, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrowserContext]:
    context = driver.chromium.launch_persistent_context(
        tmp_path_factory.mktemp("profile"),
        executable_path=FOUND,
        headless=True,
        args=ARGUMENTS,
    )
    yield context
    context.close()


@pytest.fixture(scope="module")
def bundle() -> str:
    return chart_script()


Opener = Callable[..., Watched]


@pytest.fixture
def opened(browser: BrowserContext, bundle: str, tmp_path: Path) -> Iterator[Opener]:
    pages: list[Watched] = []

    def start(found: Content, *, width: int = 1200, dark: bool = False) -> Watched:
        path = tmp_path / "report.html"
        path.write_text(html_text(found, bundle), encoding="utf-8", newline="\n")
        page = browser.new_page()
        watched = Watched(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.on("request", lambda request: watched.requests.append(request.url))
        page.on("console", lambda message: watched.trouble.append(message.text))
        page.on("pageerror", lambda error: watched.trouble.append(str(error)))
        page.on("dialog", lambda dialog: (watched.trouble.append("dialog"), dialog.dismiss()))
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " event => console.error('policy: ' + event.violatedDirective))"
        )
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=20_000)
        pages.append(watched)
        return watched

    yield start
    for watched in pages:
        allowed = (tmp_path / "report.html").as_uri()
        assert [url for url in watched.requests if url not in (allowed, "data:,")] == []
        assert watched.trouble == []
        watched.page.close()


def test_every_chart_is_drawn(opened: Opener) -> None:
    found = content(42)
    seen = opened(found)
    for name in CHARTS:
        drawn = seen.page.locator(f"#chart-{name} svg .role-mark path")
        assert drawn.count() > 0, name
        box = seen.page.locator(f"#chart-{name} svg").bounding_box()
        assert box is not None
        assert box["width"] > 300, name
        assert box["height"] > 100, name
    cells = seen.page.locator("#chart-heat .mark-rect.role-mark").first.locator("path")
    assert cells.count() == 42
    diamonds = seen.page.locator("#chart-heat .mark-symbol.role-mark path")
    assert diamonds.count() == len(found.full_lines)


def test_sorting_by_click_and_by_keyboard(opened: Opener) -> None:
    seen = opened(content(42))
    heads = seen.page.locator("#modules thead button")
    by_place = seen.column(1)
    heads.nth(7).click()  # parameters, the largest first
    sizes = [int(text.replace(",", "")) for text in seen.column(7)]
    assert sizes == sorted(sizes, reverse=True)
    assert seen.page.locator("#modules thead th").nth(7).get_attribute("aria-sort") == "descending"
    heads.nth(7).press("Enter")
    sizes = [int(text.replace(",", "")) for text in seen.column(7)]
    assert sizes == sorted(sizes)
    assert seen.page.locator("#modules thead [aria-sort]").count() == 1
    heads.nth(1).press("Space")
    names = seen.column(1)
    assert names == sorted(names, key=lambda name: [
        (int(part) if part.isdecimal() else -1, part) for part in name.split(".")
    ])  # fmt: skip
    assert names != by_place
    heads.nth(2).click()
    assert seen.column(1) == by_place  # the highest score first, what has none last
    heads.nth(2).click()
    assert seen.column(2)[-1] == "-"
    heads.nth(0).click()
    assert seen.column(1) == by_place


def test_a_module_is_chosen_by_click_and_by_keyboard(opened: Opener) -> None:
    found = content(42)
    seen = opened(found)
    curves = [seen.curve()]
    names = [line.row.module for line in found.lines]
    assert seen.text("#one-name") == names[0]

    cell = seen.page.locator("#chart-heat .mark-rect.role-mark").first.locator("path").nth(20)
    cell.click()
    seen.page.wait_for_function("name => document.querySelector('#one-name').textContent !== name",
                                arg=names[0])  # fmt: skip
    chosen = seen.text("#one-name")
    layer, kind = chosen.split(".")[2], chosen.split(".")[-1]
    assert f"model.layers.{layer}" in chosen
    assert kind in names[names.index(chosen)]
    curves.append(seen.curve())

    seen.page.locator("#chart-bars .mark-rect.role-mark").last.locator("path").nth(5).click()
    assert seen.text("#one-name") == names[5]
    curves.append(seen.curve())

    seen.page.locator("#module").focus()
    seen.page.keyboard.press("ArrowDown")
    assert seen.text("#one-name") == names[6]
    curves.append(seen.curve())

    button = seen.page.locator("#modules tbody button").nth(9)
    button.focus()
    seen.page.keyboard.press("Enter")
    assert seen.text("#one-name") == names[9]
    assert seen.page.locator("#module").input_value() == "9"
    assert seen.page.locator("#modules tr[aria-current]").count() == 1
    curves.append(seen.curve())
    assert len(set(curves)) == 5
    facts = seen.page.locator("#one-facts dd").all_text_contents()
    assert facts[0] == "10"
    assert facts[1] in seen.column(2)


def test_the_tail_curve_is_that_of_the_module(opened: Opener) -> None:
    found = content(42)
    seen = opened(found)
    seen.page.locator("#module").select_option("7")
    heights = seen.page.evaluate(
        "() => [...document.querySelectorAll('#chart-tail .mark-symbol.role-mark path')]"
        ".map(path => Number(/,([-\\d.]+)\\)/.exec(path.getAttribute('transform'))[1]))"
    )
    row = found.lines[7].row
    values = [*row.tail_curve, *row.hls_curve]
    assert len(heights) == len(values)
    ordered = sorted(heights, reverse=True)  # pixels fall where values rise
    scale = (ordered[0] - ordered[-1]) / (max(values) - min(values))
    for height, value in zip(ordered, sorted(values), strict=True):
        assert height == pytest.approx(ordered[0] - scale * (value - min(values)), abs=2)


def test_hostile_names_stay_text(opened: Opener) -> None:
    found = hostile_report()
    seen = opened(join(found, planned(found, budget="0.2"), planned_here=False))
    assert set(seen.column(1)) == {*HOSTILE, f"skipped {HOSTILE[0]}"}
    assert seen.text("h1") == f"Where LoRA may fall short in {HOSTILE[0]}"
    assert seen.page.title() == f"Where LoRA may fall short in {HOSTILE[0]}"
    assert seen.page.locator("script").count() == 3
    assert seen.page.locator("img").count() == 0
    labels = seen.page.locator("#chart-heat svg text").all_text_contents()
    assert len(set(labels) & set(HOSTILE)) >= 10
    for place, name in enumerate(seen.column(1)[:-1]):
        seen.page.locator("#module").select_option(str(place))
        assert seen.text("#one-name") == name
    seen.page.locator("#chart-heat .mark-rect.role-mark").first.locator("path").first.hover(
        force=True
    )
    assert seen.page.locator("#tip").is_visible()
    assert any(name in seen.text("#tip") for name in HOSTILE)


def colours(seen: Watched, selector: str) -> set[str]:
    found: list[str] = seen.page.evaluate(
        "selector => [...document.querySelectorAll(selector)]"
        ".map(item => getComputedStyle(item).fill)",
        selector,
    )
    return set(found)


def test_dark_pages_are_dark_and_paper_is_light(opened: Opener) -> None:
    seen = opened(content(42), dark=True)
    background = "() => getComputedStyle(document.body).backgroundColor"
    cells, labels = "#chart-heat .mark-rect path", "#chart-heat text"
    dark = (seen.page.evaluate(background), colours(seen, cells), colours(seen, labels))
    seen.page.emulate_media(color_scheme="light")
    light = (seen.page.evaluate(background), colours(seen, cells), colours(seen, labels))
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] == "rgb(18, 24, 31)"
    assert not light[1] & dark[1] - {"none"}
    assert not light[2] & dark[2]
    seen.page.emulate_media(color_scheme="dark", media="print")
    assert seen.page.evaluate(background) == "rgb(255, 255, 255)"
    assert colours(seen, labels) == light[2]


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_never_scrolls_sideways(opened: Opener, width: int) -> None:
    seen = opened(content(42), width=width)
    wide, inner = seen.page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner
    for name in CHARTS:
        box = seen.page.locator(f"#chart-{name} svg").bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= width, name
    inside = seen.page.evaluate(
        "() => { const box = document.querySelector('.tall');"
        " return [box.scrollWidth, box.clientWidth] }"
    )
    if width <= 400:
        assert inside[0] > inside[1]


def test_everything_can_be_reached_by_keyboard(opened: Opener) -> None:
    seen = opened(content(8, budget="0.2"))
    reached = set()
    for _ in range(60):
        seen.page.keyboard.press("Tab")
        name, outline, width = seen.page.evaluate(
            "() => { const now = document.activeElement; const style = getComputedStyle(now);"
            " return [now.id || now.className || now.closest('th, tr')?.textContent"
            " || now.tagName, style.outlineStyle, style.outlineWidth] }"
        )
        reached.add(name)
        if name != "BODY":
            assert (outline, width) == ("solid", "3px"), name
    for part in ("skip", "module", "filter", "scroll tall", "scroll fit", "± se"):
        assert part in reached
    assert any("model.layers" in item for item in reached)
    outline = seen.page.evaluate(
        "() => { document.querySelector('#filter').focus();"
        " return getComputedStyle(document.querySelector('#filter')).outlineWidth }"
    )
    assert outline == "3px"


def test_without_scripts_the_page_holds_texts_and_tables(
    driver: Playwright, bundle: str, tmp_path: Path
) -> None:
    found = content(42)
    path = tmp_path / "report.html"
    text = html_text(found, bundle)
    # Chromium reads <noscript> as one with scripts does, even where the driver turns them off.
    text = re.sub("</?noscript>", "", text)
    path.write_text(text, encoding="utf-8", newline="\n")
    chromium = driver.chromium.launch(executable_path=FOUND, headless=True, args=ARGUMENTS)
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto(path.as_uri())
    assert page.get_by_text("The charts are drawn by JavaScript").is_visible()
    assert page.locator("#modules tbody tr").count() == 43
    assert page.locator("#modules tbody tr").nth(41).is_visible()
    assert page.get_by_text(found.lines[0].row.module).last.is_visible()
    for dead in (".chart", "#filter", "#one"):
        assert not page.locator(dead).first.is_visible()
    chromium.close()
