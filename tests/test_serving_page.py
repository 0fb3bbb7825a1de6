"""The page of `emu serve` against a server that draws stripes: what it asks for, and what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.page_browser import MODIFIER, SCROLLS_ASIDE, Visit, headless_browser, shows_pixels
from tests.page_server import PAGE, ROWS, StripedModel, StripedServer, png, stripes

NO = "the model was not trained for image_infill; ask for another task"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_browser() as started:
        yield started


@pytest.fixture
def server() -> Iterator[StripedServer]:
    with StripedServer() as started:
        yield started


@pytest.fixture
def visit(browser, server) -> Iterator[Visit]:
    with Visit(browser, server.address) as opened:
        yield opened.ready()


@pytest.fixture
def model(server) -> StripedModel:
    return server.model


def test_files_of_the_page_name_no_other_host_and_hold_no_code_or_style_in_tags():
    for file in PAGE.iterdir():
        text = file.read_text()
        assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text.replace("http://www.w3.org/2000/svg", "")), file.name
        assert not re.findall(r"\son\w+=|\sstyle=|<style|<script(?![^>]*src)|javascript:|innerHTML|\beval\(", text), (
            file.name
        )


def test_enter_draws_row_by_row_and_shows_the_seed_and_settings_that_were_used(visit, model):
    model.hold_after = 3
    visit.page.fill("#seed", "41")
    visit.ask("a handwritten seven")
    visit.until("#count", "Row 3 of 8")
    assert visit.page.evaluate("document.getElementById('picture').style.clipPath") == "inset(0px 0px 62.5%)"
    model.released.set()
    visit.done()
    (asked,) = model.asked
    assert asked["emu"] == {"every_row": True} and asked["stream"] is True and asked["size"] == "32x32"
    assert shows_pixels(visit) == stripes(41, ROWS, (8, 1))[:, 0].tolist()
    told = [visit.setting(title) for title in ("Prompt", "Seed", "Size", "Guidance", "Top-p")]
    assert told == ["a handwritten seven", "41", "32 × 32", "3", "0.9"]
    assert visit.page.evaluate("getComputedStyle(document.getElementById('picture')).imageRendering") == "pixelated"


def test_escape_cancels_and_the_server_learns_of_it(visit, model):
    model.hold_after = 3
    visit.ask("a handwritten seven")
    visit.until("#count", "Row 3 of 8")
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_selector("#stage[data-state=stopped]")
    assert visit.page.inner_text("#count") == "Cancelled after row 3 of 8."
    model.released.set()
    visit.page.press("#prompt", "Enter")
    visit.done()
    assert model.gone == ["/v1/images/generations"]


def test_an_error_of_the_server_stands_beside_the_field_that_it_concerns(visit, model):
    model.refusals.append((400, {"message": "seed is 7; expected another", "param": "seed"}, {}))
    visit.ask("a handwritten seven")
    visit.page.wait_for_selector("#seed-problem")
    assert visit.page.inner_text("#seed-problem") == "seed is 7; expected another"
    assert visit.page.get_attribute("#seed", "aria-invalid") == "true"
    assert visit.page.evaluate("document.activeElement.id") == "seed"
    visit.page.fill("#seed", "8")
    assert visit.page.is_hidden("#seed-problem")


@pytest.mark.slow
def test_repeat_gives_the_same_bytes_and_vary_another_seed(visit, model):
    visit.ask("a handwritten seven")
    visit.done()
    visit.page.click("#repeat")
    visit.until("#outcome", ".")
    assert visit.page.inner_text("#outcome") == "The same again, byte for byte."
    assert visit.page.locator(".work").count() == 1
    visit.page.click("#vary")
    visit.made(2)
    first, again, varied = model.asked
    assert first == again
    assert {**varied, "seed": 0} == {**first, "seed": 0} and varied["seed"] != first["seed"]


@pytest.mark.slow
def test_a_work_of_the_gallery_comes_back_with_all_its_settings(visit, model):
    visit.page.click("#more summary")
    for field, value in (("#temperature", "0.7"), ("#top_p", "0.8"), ("#negative", "grey"), ("#seed", "5")):
        visit.page.fill(field, value)
    visit.page.select_option("#size", "48x32")
    visit.ask("the digit two")
    visit.done()
    for field in ("#temperature", "#top_p", "#negative"):
        visit.page.fill(field, "")
    visit.page.select_option("#size", "32x32")
    visit.page.fill("#seed", "6")
    visit.ask("another")
    visit.made(2)
    visit.page.click(".work >> nth=1")
    assert visit.setting("Size") == "48 × 32"
    visit.page.click("#repeat")
    visit.until("#outcome", ".")
    first, _, again = model.asked
    assert first == again
    assert first | {"temperature": 0.7, "top_p": 0.8, "negative_prompt": "grey", "seed": 5, "size": "48x32"} == first


@pytest.mark.slow
def test_a_chosen_work_is_scrolled_into_sight_on_a_narrow_window(browser, server):
    with Visit(browser, server.address, width=360) as visit:
        visit.ready()
        visit.ask("a handwritten seven")
        visit.done()
        visit.page.locator(".work").scroll_into_view_if_needed()
        visit.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        visit.page.click(".work")
        top, height = visit.page.evaluate(
            "(({top, height}) => [top, height])(document.getElementById('frame').getBoundingClientRect())"
        )
        assert top >= 0 and top + height <= 900


@pytest.mark.slow
def test_a_seed_changes_after_each_result_unless_one_was_typed(visit, model):
    for _ in range(2):
        visit.ask("a handwritten seven")
        visit.done()
        visit.page.wait_for_timeout(50)
    visit.page.fill("#seed", "77")
    for number in (3, 4):
        visit.ask("a handwritten seven")
        visit.made(number)
    seeds = [asked["seed"] for asked in model.asked]
    assert seeds[0] != seeds[1] and seeds[2:] == [77, 77]
    visit.page.click("#new-seed")
    assert visit.page.input_value("#seed") != "77"


@pytest.mark.slow
@pytest.mark.parametrize("value", ["", "abc", "-1", "1.5", "99999999999999999999"])
def test_a_seed_that_is_none_is_refused_before_anything_is_sent(visit, model, value):
    visit.page.fill("#seed", value)
    visit.ask("a handwritten seven")
    assert visit.page.inner_text("#seed-problem").startswith("A seed is a whole number from 0 to")
    assert not model.asked


@pytest.mark.slow
def test_what_is_missing_is_said_beside_its_field(visit, model):
    visit.ask("")
    assert visit.page.is_visible("#prompt-problem")
    visit.ask("brighter", "edit")
    assert visit.page.inner_text("#image-problem") == "Choose a picture first."
    visit.give(png(stripes(1, ROWS, (32, 32))))
    assert visit.page.is_hidden("#image-problem")
    visit.ask("a seven", "fill")
    assert visit.page.inner_text("#mask-problem") == "Mark first what is to be drawn anew."
    assert not model.asked


@pytest.mark.slow
def test_downloaded_picture_is_the_server_s_file(visit, model):
    visit.page.fill("#seed", "9")
    visit.ask("a handwritten seven")
    visit.done()
    with visit.page.expect_download() as download:
        visit.page.click("#download")
    assert download.value.suggested_filename == "a-handwritten-seven-9.png"
    assert download.value.path().read_bytes() == png(stripes(9, ROWS, (32, 32)))


@pytest.mark.slow
def test_a_picture_is_described(visit, model):
    visit.task("describe")
    assert visit.page.input_value("#prompt") == "Describe it."
    visit.give(png(stripes(3, ROWS, (32, 32))))
    visit.page.click("#start")
    visit.done()
    assert visit.page.inner_text("#words") == "stripes of many colours"
    picture, question = model.asked[0]["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert question == {"type": "text", "text": "Describe it."}


@pytest.mark.slow
def test_a_picture_of_a_size_that_the_model_knows_is_sent_byte_for_byte(visit, model):
    given = png(stripes(3, ROWS, (32, 48)))
    visit.task("edit")
    visit.give(given)
    visit.ask("brighter", "edit")
    visit.done()
    assert model.asked[0]["image"] == given
    assert model.asked[0]["emu[every_row]"] == "true" and "mask" not in model.asked[0]


@pytest.mark.slow
def test_a_picture_of_another_size_is_scaled_and_the_page_says_so(visit, model):
    import io

    from PIL import Image

    visit.task("edit")
    visit.give(png(stripes(3, ROWS, (64, 100))))
    assert visit.page.inner_text("#picture-note") == "Scaled from 100 × 64 to 48 × 32 pixels, which the model knows."
    visit.ask("brighter", "edit")
    visit.done()
    assert Image.open(io.BytesIO(model.asked[0]["image"])).size == (48, 32)


@pytest.mark.slow
def test_the_mask_is_clear_where_a_rectangle_was_marked_by_numbers(visit, model):
    import io

    import numpy as np
    from PIL import Image

    visit.task("fill")
    visit.give(png(stripes(3, ROWS, (32, 48))))
    visit.page.click("#painting summary")
    for field, value in (("#left", "5"), ("#top", "6"), ("#width", "7"), ("#height", "8")):
        visit.page.fill(field, value)
    visit.page.press("#height", "Enter")
    assert visit.page.inner_text("#covered") == "4 % marked"
    visit.ask("a handwritten seven", "fill")
    visit.done()
    clear = np.asarray(Image.open(io.BytesIO(model.asked[0]["mask"])))[:, :, 3] == 0
    expected = np.zeros((32, 48), dtype=bool)
    expected[6:14, 5:12] = True
    assert (clear == expected).all()
    visit.page.fill("#left", "48")
    visit.page.click("#rectangle")
    assert "outside the picture, which has 48 × 32 pixels" in visit.page.inner_text("#covered")


@pytest.mark.slow
def test_strokes_of_the_brush_are_taken_back_one_by_one(visit):
    visit.task("fill")
    visit.give(png(stripes(3, ROWS, (32, 32))))
    box = visit.page.locator("#mask").bounding_box()
    shares = []
    for height in (0.3, 0.7):
        visit.page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + height * box["height"])
        visit.page.mouse.down()
        visit.page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + height * box["height"], steps=5)
        visit.page.mouse.up()
        shares.append(int(visit.page.inner_text("#covered").split()[0]))
    assert 0 < shares[0] < shares[1]
    visit.page.click("#undo")
    assert visit.page.inner_text("#covered") == f"{shares[0]} % marked"
    visit.page.focus("#brush")
    visit.page.keyboard.press(f"{MODIFIER}+z")
    assert visit.page.inner_text("#covered") == "Nothing is marked yet."


@pytest.mark.slow
def test_a_clip_is_made_and_cancelled(visit, model):
    pytest.importorskip("av", reason="PyAV is not installed")
    visit.ask("a seven moving left", "animate")
    visit.done()
    assert visit.page.evaluate("document.getElementById('clip').duration") == pytest.approx(2, abs=0.3)
    assert visit.page.inner_text("#download") == "Download MP4"
    model.clips.clear()
    model.hold_after = 1
    visit.ask("a seven moving left", "animate")
    visit.until("#count", "50 %")
    with visit.page.expect_response(lambda response: response.request.method == "DELETE"):
        visit.page.click("#cancel")
    visit.page.wait_for_selector("#stage[data-state=stopped]")
    assert model.gone == ["video_0"]


@pytest.mark.slow
def test_what_is_made_can_be_given_to_another_task(visit, model):
    visit.ask("a handwritten seven")
    visit.done()
    visit.page.click("#uses button[value=edit]")
    visit.page.wait_for_selector("#given:not([hidden])")
    visit.ask("brighter", "edit")
    visit.made(2)
    assert model.asked[1]["image"] == png(stripes(model.asked[0]["seed"], ROWS, (32, 32)))


@pytest.mark.slow
def test_a_pasted_and_a_dropped_picture_open_a_task_that_takes_one(visit):
    give = """async (kind) => {
        const canvas = new OffscreenCanvas(32, 32);
        canvas.getContext("2d").fillRect(0, 0, 8, 8);
        const file = new File([await canvas.convertToBlob()], "mine.png", { type: "image/png" });
        const data = new DataTransfer();
        data.items.add(file);
        const init = kind === "paste" ? { clipboardData: data } : { dataTransfer: data };
        const event = kind === "paste" ? ClipboardEvent : DragEvent;
        document.body.dispatchEvent(new event(kind, { bubbles: true, cancelable: true, ...init }));
    }"""
    for kind in ("paste", "drop"):
        visit.task("draw")
        visit.page.evaluate(give, kind)
        visit.page.wait_for_selector("#given:not([hidden])")
        assert visit.page.is_checked("input[value=describe]")
        visit.page.click("#forget")
        assert visit.page.is_hidden("#given")


@pytest.mark.slow
def test_a_file_that_is_no_picture_is_refused(visit):
    visit.task("describe")
    visit.page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    visit.page.wait_for_selector("#image-problem")
    assert "a.png is not a picture" in visit.page.inner_text("#image-problem")


@pytest.mark.slow
def test_what_the_model_was_not_trained_for_is_disabled_with_the_reason(browser, server, model):
    model.tasks["fill"] = NO
    with Visit(browser, server.address) as visit:
        visit.ready()
        visit.task("fill")
        assert visit.page.text_content("#untrained-reason") == NO
        assert visit.page.is_disabled("#prompt") and visit.page.is_disabled("#start")
        visit.task("draw")
        assert visit.page.is_enabled("#prompt")
        visit.ask("a handwritten seven")
        visit.done()
        assert visit.page.is_visible("#uses button[value=edit]") and visit.page.is_hidden("#uses button[value=fill]")


@pytest.mark.slow
def test_the_key_is_asked_for_and_kept_for_the_tab(browser, server, model):
    model.key = "correct horse"
    with Visit(browser, server.address) as visit:
        visit.page.wait_for_selector("#key-dialog[open]")
        visit.page.fill("#key", "wrong")
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_selector("#key-problem")
        visit.page.fill("#key", "correct horse")
        visit.page.keyboard.press("Enter")
        visit.ready()
        visit.page.reload()
        visit.ready()
        model.key = "another horse"
        visit.ask("a handwritten seven")
        visit.page.wait_for_selector("#key-dialog[open]")
        visit.page.fill("#key", "another horse")
        visit.page.keyboard.press("Enter")
        visit.done()


@pytest.mark.slow
def test_a_full_queue_says_how_long_to_wait_and_a_button_tries_again(visit, model):
    model.refusals.append((429, {"message": "64 requests wait already."}, {"Retry-After": "1"}))
    visit.ask("a handwritten seven")
    visit.page.wait_for_selector("#problem")
    assert visit.page.inner_text("#problem-words") == "64 requests wait already. It asks to wait 1 second."
    assert visit.page.is_disabled("#again")
    visit.page.wait_for_selector("#again:enabled")
    visit.page.click("#again")
    visit.done()
    assert model.asked[0] == model.asked[1] and visit.page.is_hidden("#problem")


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 413, 500, 503, 504, 507])
def test_other_errors_stand_in_words_beside_the_button(visit, model, status):
    model.refusals.append((status, {"message": f"This is why: {status}."}, {}))
    visit.ask("a handwritten seven")
    visit.page.wait_for_selector("#problem")
    assert visit.page.inner_text("#problem-words") == f"This is why: {status}."


@pytest.mark.slow
def test_a_connection_that_ends_early_is_no_result(visit, model):
    model.drop_after = 3
    visit.ask("a handwritten seven")
    visit.page.wait_for_selector("#problem")
    assert visit.page.inner_text("#problem-words") == "The connection ended before the picture was finished."
    assert visit.page.inner_text("#count") == "Stopped after row 3 of 8."
    model.drop_after = None
    visit.page.click("#again")
    visit.done()


@pytest.mark.slow
def test_without_a_network_the_page_says_so_and_tries_again(browser, server):
    with Visit(browser, server.address) as visit:
        visit.ready()
        visit.page.context.set_offline(True)
        visit.ask("a handwritten seven")
        visit.page.wait_for_selector("#problem")
        assert visit.page.inner_text("#problem-words").startswith("The server cannot be reached.")
        visit.page.context.set_offline(False)
        visit.page.click("#again")
        visit.done()


@pytest.mark.slow
def test_words_of_users_and_servers_are_shown_as_words(browser, server, model):
    spoof = "<img src=x onerror=alert(1)><b>bold</b>"
    model.prompts = [spoof]
    with Visit(browser, server.address) as visit:
        visit.ready()
        assert visit.page.inner_text(".idea") == spoof
        visit.ask(spoof)
        visit.done()
        assert visit.setting("Prompt") == spoof
        assert visit.page.inner_text(".work-words") == spoof


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 600, 900, 1440, 1600])
def test_no_width_scrolls_aside(browser, server, model, width):
    model.tasks["edit"] = NO
    with Visit(browser, server.address, width) as visit:
        visit.ready()
        for task in model.tasks:
            visit.task(task)
            assert not visit.page.evaluate(SCROLLS_ASIDE), task
        visit.ask("a" * 200)
        visit.done()
        assert not visit.page.evaluate(SCROLLS_ASIDE)
