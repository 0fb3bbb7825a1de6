"""Draw docs/serving.png, the page of `emu serve pictures` in headless Chromium: python docs/draw_serving.py

Nothing is picked: the prompts that the page proposes, with seeds 0 to 5, and the last picture in another skin tone. Needs the extra serve,
playwright and Chromium.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from serving_page import opened, served

FILE = Path(__file__).with_name("serving.png")
WINDOW = {"viewport": {"width": 1360, "height": 976}, "color_scheme": "light", "reduced_motion": "reduce"}
SEEDS = 6
TONE = "light skin tone"


def draw_all(page: Page) -> None:
    """Draw each proposed prompt in turn, and recolour the last picture."""
    ideas = page.locator(".idea")
    for seed in range(SEEDS):
        ideas.nth(seed % ideas.count()).click()
        page.fill("#seed", str(seed))
        page.press("#prompt", "Enter")
        page.locator(".work").nth(seed).wait_for()
        page.wait_for_selector("#start[aria-disabled=false]")
    page.click("#uses button[value=edit]")
    page.wait_for_selector("#given:not([hidden])")
    page.fill("#prompt", TONE)
    page.press("#prompt", "Enter")
    page.locator(".work").nth(SEEDS).wait_for()
    page.wait_for_selector("#start[aria-disabled=false]")
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")


def main() -> None:
    """Write the picture."""
    with served("pictures") as address, opened(address, **WINDOW) as page:
        draw_all(page)
        page.screenshot(path=FILE)


if __name__ == "__main__":
    main()
