"""The page of `emu serve` in front of the server itself, with the bundled models and one that fills in."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emu import Emu
from emu.media import png_bytes
from tests.page_browser import Visit, headless_browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_browser() as started:
        yield started


@contextmanager
def visited(browser: Any, emu: Emu, folder: Path) -> Iterator[Visit]:
    """The page of a server that serves this model."""
    toys = pytest.importorskip("tests.serving_toys", reason="the extra serve is not installed")
    with ExitStack() as stack:
        address = stack.enter_context(toys.running(emu, folder)).url
        yield stack.enter_context(Visit(browser, address)).ready()


@pytest.fixture(scope="module")
def digits() -> Emu:
    return Emu.from_pretrained("digits", device="cpu", deterministic=True)


@pytest.fixture(scope="module")
def pictures() -> Emu:
    return Emu.from_pretrained("pictures", device="cpu", deterministic=True)


def downloaded(visit: Visit) -> bytes:
    with visit.page.expect_download() as download:
        visit.page.click("#download")
    return download.value.path().read_bytes()


def test_what_is_drawn_repeated_and_downloaded_is_what_python_draws(browser, digits, tmp_path):
    with visited(browser, digits, tmp_path) as visit:
        visit.page.fill("#seed", "11")
        visit.ask("a handwritten seven")
        visit.page.wait_for_selector("#stage[data-state=drawing]")
        visit.done()
        (result,) = digits.generate_images("a handwritten seven", seed=11)
        data = downloaded(visit)
        assert data == png_bytes(result.image, result.about)
        assert visit.setting("Seed") == "11" and visit.setting("Size") == "32 × 32"
        visit.page.click("#repeat")
        visit.until("#outcome", "The same again, byte for byte.")
        visit.page.click("#vary")
        visit.made(2)
        assert not visit.violations()


def test_digits_says_in_words_what_it_was_not_trained_for(browser, digits, tmp_path):
    with visited(browser, digits, tmp_path) as visit:
        for task in ("edit", "fill"):
            visit.task(task)
            assert "not trained" in visit.page.inner_text("#untrained-reason")
            assert visit.page.is_disabled("#start")
        visit.task("draw")
        assert visit.page.is_enabled("#start")


def test_a_digit_is_described_in_the_words_of_python(browser, digits, tmp_path):
    (drawn,) = digits.generate_images("a handwritten three", seed=3)
    with visited(browser, digits, tmp_path) as visit:
        visit.task("describe")
        visit.give(png_bytes(drawn.image))
        visit.page.click("#start")
        visit.done()
        assert visit.page.inner_text("#words") == digits.generate_text([[drawn.image, "Describe it."]])[0]


def test_a_picture_is_edited_by_words(browser, pictures, tmp_path):
    with visited(browser, pictures, tmp_path) as visit:
        visit.ask("woman singer, dark skin tone")
        visit.done()
        given = Image.open(io.BytesIO(downloaded(visit)))
        visit.page.click("#uses button[value=edit]")
        visit.page.wait_for_selector("#given:not([hidden])")
        visit.page.fill("#seed", "5")
        visit.ask("light skin tone", "edit")
        visit.made(2)
        (result,) = pictures.edit_images([given], "light skin tone", seed=5)
        assert downloaded(visit) == png_bytes(result.image, result.about)


def test_hidden_cells_are_filled_in(browser, filling_emu, tmp_path):
    (drawn,) = filling_emu.generate_images("a red circle", seed=1)
    with visited(browser, filling_emu, tmp_path) as visit:
        visit.task("fill")
        visit.give(png_bytes(drawn.image))
        visit.page.click("#painting summary")
        for field, value in (("#left", "4"), ("#top", "4"), ("#width", "4"), ("#height", "4")):
            visit.page.fill(field, value)
        visit.page.click("#rectangle")
        visit.ask("a red circle", "fill")
        visit.done()
        filled = Image.open(io.BytesIO(downloaded(visit)))
        for box in ((0, 0, 8, 4), (0, 4, 4, 8)):
            assert filled.crop(box).tobytes() == drawn.image.convert("RGB").crop(box).tobytes()


def test_a_clip_is_made_played_and_cancelled(browser, digits, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    with visited(browser, digits, tmp_path) as visit:
        visit.ask("a handwritten seven moving left", "animate")
        visit.done()
        assert visit.page.evaluate("document.getElementById('clip').videoWidth") == 32
        assert downloaded(visit)[4:8] == b"ftyp"
        visit.ask("a handwritten seven moving right", "animate")
        visit.page.keyboard.press("Escape")
        visit.page.wait_for_selector("#stage[data-state=stopped]")
        visit.ask("a handwritten two")
        visit.done()


def test_a_cancelled_drawing_leaves_its_place_to_the_next(browser, digits, tmp_path):
    with visited(browser, digits, tmp_path) as visit:
        for _ in range(5):
            visit.ask("a handwritten seven")
            visit.page.keyboard.press("Escape")
            visit.page.wait_for_selector("#cancel", state="hidden")
        visit.ask("a handwritten seven")
        visit.done()
