"""A headless Chromium for tests of the page, and what they ask of it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DONE = "#stage[data-state=done]"


@contextmanager
def headless_browser() -> Iterator[Any]:
    """Chromium while the block lasts; the test is skipped by name where it or playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as started:
        if found is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("chromium is not installed")
        browser = started.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """The page in a window of its own.

    Attributes:
        page: playwright's.
        hosts: that it asked for anything.
        problems: what its scripts complained about; answers that are errors are none.
    """

    def __init__(self, browser: Any, address: str, width: int = 1280, dark: bool = False, **options: Any) -> None:
        theme = "dark" if dark else "light"
        self._window = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce", **options
        )
        self.page = self._window.new_page()
        self.page.set_default_timeout(20_000)
        self.hosts: set[str] = set()
        self.problems: list[str] = []
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._hear)
        self.page.goto(address)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._window.close()
        if kind is None:
            assert not self.problems
            assert all(host.startswith("127.0.0.1:") for host in self.hosts), self.hosts

    def _note(self, url: str) -> None:
        if urlsplit(url).scheme not in ("blob", "data"):
            self.hosts.add(urlsplit(url).netloc)

    def _hear(self, message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.problems.append(message.text)

    def ready(self) -> Visit:
        """Wait until the model is known."""
        self.until("#model", ".")
        return self

    def until(self, place: str, pattern: str) -> None:
        """Wait until an element shows text of this pattern. (The page's policy allows no code in strings, so none can be waited for.)"""
        self.page.locator(place, has_text=re.compile(pattern)).wait_for()

    def made(self, count: int) -> None:
        """Wait until so many works are on the shelf."""
        self.page.locator(".work").nth(count - 1).wait_for()
        self.done()

    def task(self, name: str) -> None:
        """Open a task."""
        self.page.check(f"input[value={name}]", force=True)

    def ask(self, prompt: str, task: str = "draw") -> None:
        """Open a task, write its prompt and press Enter."""
        self.task(task)
        self.page.fill("#prompt", prompt)
        self.page.press("#prompt", "Enter")

    def give(self, png: bytes) -> None:
        """Choose a picture."""
        self.page.set_input_files("#file", {"name": "given.png", "mimeType": "image/png", "buffer": png})
        self.page.wait_for_selector("#given:not([hidden])")

    def done(self) -> None:
        """Wait until a result is there."""
        self.page.wait_for_selector(DONE)
        self.page.wait_for_selector("#start[aria-disabled=false]")

    def setting(self, title: str) -> str:
        """A setting of the result, as it is shown."""
        return self.page.inner_text(f"#settings div:has(dt:text-is('{title}')) dd")

    def violations(self) -> list[str]:
        """What axe-core objects to: serious and critical, each with the element."""
        axe = pytest.importorskip(
            "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
        )
        found = axe.Axe().run(self.page).response["violations"]
        return [
            f"{one['impact']} {one['id']}: {[node['html'][:200] for node in one['nodes']]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]


def shows_pixels(visit: Visit) -> list[list[int]]:
    """The colours of the shown picture, one from the middle of each of eight rows."""
    return visit.page.evaluate(
        """async () => {
            const image = document.getElementById("picture");
            await image.decode();
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            const rows = [...Array(8).keys()].map((row) => (row + 0.5) * canvas.height / 8);
            return rows.map((row) => [...context.getImageData(canvas.width / 2, row, 1, 1).data.slice(0, 3)]);
        }"""
    )


SCROLLS_ASIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
"""Whether the page is wider than its window."""
MODIFIER = "Meta" if sys.platform == "darwin" else "Control"
