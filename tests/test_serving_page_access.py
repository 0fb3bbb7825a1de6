"""The page of `emu serve` for everyone: axe-core finds nothing serious in any state, and a keyboard alone is enough.

axe-core comes inside the package axe-playwright-python (MIT); it is under the Mozilla Public License 2.0 and used by these tests alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.page_browser import Visit, headless_browser
from tests.page_server import ROWS, StripedModel, StripedServer, png, stripes

pytestmark = pytest.mark.slow
GIVEN = png(stripes(3, ROWS, (32, 32)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_browser() as started:
        yield started


@pytest.fixture
def server() -> Iterator[StripedServer]:
    with StripedServer() as started:
        yield started


def nothing(visit: Visit, model: StripedModel) -> None:
    """As it opens."""


def waiting(visit: Visit, model: StripedModel) -> None:
    model.hold_after = 0
    visit.ask("a handwritten seven")
    visit.page.wait_for_selector("#stage[data-state=waiting]")


def drawing(visit: Visit, model: StripedModel) -> None:
    model.hold_after = 3
    visit.ask("a handwritten seven")
    visit.page.wait_for_selector("#stage[data-state=drawing]")


def finished(visit: Visit, model: StripedModel) -> None:
    visit.ask("a handwritten seven")
    visit.done()


def repeated(visit: Visit, model: StripedModel) -> None:
    finished(visit, model)
    visit.page.click("#repeat")
    visit.until("#outcome", ".")


def cancelled(visit: Visit, model: StripedModel) -> None:
    drawing(visit, model)
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_selector("#stage[data-state=stopped]")


def with_a_wrong_seed(visit: Visit, model: StripedModel) -> None:
    visit.page.fill("#seed", "abc")
    visit.ask("a handwritten seven")
    visit.page.wait_for_selector("#seed-problem")


def refused(visit: Visit, model: StripedModel) -> None:
    model.refusals.append((429, {"message": "64 requests wait already."}, {"Retry-After": "60"}))
    visit.ask("a handwritten seven")
    visit.page.wait_for_selector("#problem")


def untrained(visit: Visit, model: StripedModel) -> None:
    model.tasks["edit"] = "the model was not trained for image_and_text_to_image; ask for another task"
    visit.page.reload()
    visit.ready()
    visit.task("edit")


def all_settings(visit: Visit, model: StripedModel) -> None:
    visit.page.click("#more summary")


def describing(visit: Visit, model: StripedModel) -> None:
    visit.task("describe")
    visit.give(GIVEN)
    visit.page.click("#start")
    visit.done()


def editing(visit: Visit, model: StripedModel) -> None:
    visit.task("edit")


def painted(visit: Visit, model: StripedModel) -> None:
    visit.task("fill")
    visit.give(GIVEN)
    visit.page.click("#painting summary")
    visit.page.click("#rectangle")


def with_a_clip(visit: Visit, model: StripedModel) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    visit.ask("a seven moving left", "animate")
    visit.done()


def asked_for_a_key(visit: Visit, model: StripedModel) -> None:
    model.key = "correct horse"
    visit.page.reload()
    visit.page.wait_for_selector("#key-dialog[open]")
    visit.page.fill("#key", "wrong")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#key-problem")


def without_an_answer(visit: Visit, model: StripedModel) -> None:
    visit.page.context.route("**/v1/models", lambda route: route.abort())
    visit.page.reload()
    visit.page.wait_for_selector("#reconnect")


STATES = [
    nothing,
    waiting,
    drawing,
    finished,
    repeated,
    cancelled,
    with_a_wrong_seed,
    refused,
    untrained,
    all_settings,
    describing,
    editing,
    painted,
    with_a_clip,
    asked_for_a_key,
    without_an_answer,
]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_axe_finds_nothing_serious(browser, server, state: Callable[[Visit, StripedModel], None], dark):
    with Visit(browser, server.address, dark=dark) as visit:
        visit.ready()
        state(visit, server.model)
        assert not visit.violations()


def focused(visit: Visit) -> str:
    """Id of the element that has the focus, its value where it has no id, "body" where none has it."""
    return visit.page.evaluate(
        "(({id, value, tagName}) => id || value || tagName.toLowerCase())(document.activeElement)"
    )


def tab_to(visit: Visit, name: str) -> list[str]:
    """Press Tab until an element has the focus; what had it on the way."""
    passed: list[str] = []
    while focused(visit) != name:
        assert len(passed) < 60, f"{name} is not reached: {passed}"
        visit.page.keyboard.press("Tab")
        passed.append(focused(visit))
    return passed


def test_a_keyboard_alone_draws_repeats_and_cancels(browser, server):
    with Visit(browser, server.address) as visit:
        visit.ready()
        tab_to(visit, "prompt")
        visit.page.keyboard.type("a handwritten seven")
        visit.page.keyboard.press("Enter")
        visit.done()
        tab_to(visit, "repeat")
        visit.page.keyboard.press("Enter")
        visit.until("#outcome", "The same again")
        assert focused(visit) == "repeat"
        server.model.hold_after = 3
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_selector("#stage[data-state=drawing]")
        visit.page.keyboard.press("Escape")
        visit.page.wait_for_selector("#stage[data-state=stopped]")
        assert len(server.model.asked) == 3


def test_arrow_keys_choose_the_task_and_tab_passes_through_the_whole_page(browser, server):
    with Visit(browser, server.address) as visit:
        visit.ready()
        visit.ask("a handwritten seven")
        visit.done()
        visit.page.evaluate("document.activeElement.blur(), window.scrollTo(0, 0)")
        visit.page.focus("input[value=draw]")
        visit.page.keyboard.press("ArrowRight")
        assert visit.page.is_checked("input[value=describe]") and focused(visit) == "describe"
        visit.page.keyboard.press("ArrowLeft")
        passed = tab_to(visit, "body")
        order = ["prompt", "size", "guidance", "seed", "new-seed", "fresh", "start", "repeat", "vary", "download"]
        assert [name for name in passed if name in order] == order


def test_what_has_the_focus_is_seen(browser, server):
    visible = """() => {
        const one = document.activeElement.matches("[type=radio]") ? document.activeElement.nextElementSibling
            : document.activeElement.matches("[type=file]") ? document.querySelector("label[for=file]")
            : document.activeElement;
        return getComputedStyle(one).outlineStyle !== "none";
    }"""
    with Visit(browser, server.address) as visit:
        visit.ready()
        visit.task("describe")
        visit.page.focus("input[value=describe]")
        visit.page.keyboard.press("Shift+Tab")
        assert focused(visit) == "theme"
        while focused(visit) != "body":
            assert visit.page.evaluate(visible), focused(visit)
            visit.page.keyboard.press("Tab")


def test_the_switch_overrules_the_system_and_is_remembered(browser, server):
    with Visit(browser, server.address) as visit:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = visit.page.evaluate(ground)
        visit.page.press("#theme", "Enter")
        dark = visit.page.evaluate(ground)
        assert dark != light and visit.page.get_attribute("#theme", "aria-checked") == "true"
        visit.page.reload()
        assert visit.page.evaluate(ground) == dark
        visit.page.press("#theme", "Enter")
        assert visit.page.evaluate(ground) == light
        visit.page.emulate_media(color_scheme="dark")
        visit.page.wait_for_selector("html[data-theme=dark]")


def test_progress_is_said_at_quarters_and_not_at_every_row(browser, server):
    watch = """() => {
        window.said = [];
        const place = document.getElementById("said");
        const hear = (records) => window.said.push(...records.flatMap(({ addedNodes }) => [...addedNodes].map((one) => one.data)));
        new MutationObserver(hear).observe(place, { childList: true });
    }"""
    with Visit(browser, server.address) as visit:
        visit.ready()
        visit.page.evaluate(watch)
        visit.ask("a handwritten seven")
        visit.done()
        said = visit.page.evaluate("window.said")
        assert said[0] == "Waiting for the first row" and said[-1].startswith("Finished.")
        assert said[1:-1] == ["Row 2 of 8", "Row 4 of 8", "Row 6 of 8"]


def test_nothing_moves_where_motion_is_to_be_reduced(browser, server):
    with Visit(browser, server.address) as visit:
        visit.ready()
        waiting(visit, server.model)
        assert visit.page.evaluate("document.getAnimations().length") == 0
