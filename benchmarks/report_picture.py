"""Take the picture of the report page that stands in the README.

It is the top of what `hlscore report` writes for `hlscore rank builtin:tiny --budget 0.1`, in
headless Chromium. Run it with `python benchmarks/report_picture.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

TARGET = Path(__file__).parent / "pictures" / "report.png"
WIDTH, HEIGHT = 1200, 1750
LARGEST_BYTES = 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> None:
    """Rank the built-in model, write its page, and photograph it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        hlscore("rank", "builtin:tiny", "--budget", "0.1", "--device", "cpu", "-o", out)
        hlscore("report", out / "scores.parquet", out / "plan.json", "-o", out / "report.html")
        photograph(out / "report.html", TARGET)
    print(TARGET, TARGET.stat().st_size)


def hlscore(*arguments: object) -> None:
    """Run one command."""
    command = [sys.executable, "-m", "hlscore", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def photograph(page: Path, target: Path) -> None:
    """Save the top of a page, in light colours.

    Raises:
        SystemExit: There is no browser, or the picture is too large.
    """
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None:
        raise SystemExit(f"No browser: install one of {', '.join(BROWSERS)}.")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        view = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        view.goto(page.resolve().as_uri())
        view.wait_for_selector("html[data-ready]")
        view.screenshot(path=target)
        chromium.close()
    if target.stat().st_size > LARGEST_BYTES:
        raise SystemExit(f"{target} is {target.stat().st_size:,} bytes.")


if __name__ == "__main__":
    main()
