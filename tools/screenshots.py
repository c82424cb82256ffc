"""Take the pictures of the pages from report.html of a run, in the system's Chromium.

    python tools/screenshots.py runs/demo         # docs/pictures/report-*.webp

The page is opened as a reader opens it, at a fixed size, light and dark; nothing of it is changed
but the unit and the utterance that are shown. Wants playwright (extra `dev`) and chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
REPORT = "report.html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MAX_BYTES = 250_000
QUALITIES = (85, 75, 60, 45)
"""Of WebP; the first that gives a file below the limit."""
UNIT = 0
"""The unit of the explorer."""
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Shot:
    """One picture."""

    name: str
    first: str
    """Selector of the element at the top."""
    last: str
    """Selector of the element at the bottom."""
    width: int = 1100
    height: int = 0
    """Pixels of the page from the top on; 0: to the end of the last element."""
    scale: float = 1.0
    dark: bool = False


SHOTS = (
    Shot("report-overview", "header", "#health figure:nth-of-type(2)"),
    Shot("report-unit", "#unit", "#unit"),
    Shot("report-phones", "#phones", "#phones", height=560),
    Shot("report-utterance", "#utterances", "#utterances"),
    Shot("report-tasks", "#tasks", "#tasks", height=900, dark=True),
    Shot("report-phone-width", "header", "#health", width=390, height=844, scale=2, dark=True),
)


def main(arguments: list[str] | None = None) -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run of recipe demo")
    parser.add_argument("--to", type=Path, default=PICTURES)
    options = parser.parse_args(arguments)
    report = options.run / REPORT
    if not report.is_file():
        print(f"error: {report}: not there; make it with stage=report", file=sys.stderr)
        return 1
    program = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if program is None:
        print(f"error: no browser; install one of {', '.join(BROWSERS)}", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    options.to.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for shot in SHOTS:
            path = options.to / f"{shot.name}.webp"
            path.write_bytes(webp(take(browser, report, shot)))
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        browser.close()
    return 0


def take(browser: Any, report: Path, shot: Shot) -> bytes:
    """The picture as PNG."""
    tab = browser.new_page(
        viewport={"width": shot.width, "height": 900},
        device_scale_factor=shot.scale,
        color_scheme="dark" if shot.dark else "light",
    )
    tab.set_default_timeout(1000 * PATIENCE_SECONDS)
    tab.goto(report.absolute().as_uri())
    tab.wait_for_selector(".examples canvas")
    number = tab.locator("#unit input")
    number.fill(str(UNIT))
    number.press("Enter")
    # All that is drawn when it comes into view.
    for section in tab.locator("section").all():
        section.scroll_into_view_if_needed()
    tab.wait_for_timeout(1500)
    tab.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    tab.wait_for_timeout(500)
    top = 0 if shot.first == "header" else tab.locator(shot.first).first.bounding_box()["y"]
    box = tab.locator(shot.last).first.bounding_box()
    height = shot.height or box["y"] + box["height"] - top + 16
    clip = {"x": 0, "y": top, "width": shot.width, "height": height}
    if top > 0:  # the contents stick to the top of the window, over a picture of the whole page
        tab.add_style_tag(content="nav { position: static !important; }")
    picture = bytes(tab.screenshot(full_page=True, clip=clip))
    tab.close()
    return picture


def webp(png: bytes) -> bytes:
    """The picture as WebP below the limit."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    for quality in QUALITIES:
        content = io.BytesIO()
        image.save(content, "WEBP", quality=quality, method=6)
        if content.tell() <= MAX_BYTES:
            break
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(main())
