"""Seconds from the click on Draw to the first row in the page of `emu serve digits`, in headless Chromium.

    python benchmarks/serving_page.py --rounds 10

The clock runs in the page, from the click until the frame after the first row was decoded; another until the frame after the finished
picture. One picture is drawn before, uncounted. The row goes to results/serving_page.csv; on a machine that others use, the load average
beside it says how busy it was. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import machine_name
from playwright.sync_api import Page, sync_playwright

RESULTS = Path(__file__).parent / "results"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DRAW = """() => new Promise((resolve) => {
    const image = document.getElementById("picture");
    const stage = document.getElementById("stage");
    const begun = performance.now();
    const seconds = () => (performance.now() - begun) / 1000;
    let first = null;
    image.addEventListener("load", () => requestAnimationFrame(() => { first = seconds(); }), { once: true });
    const observer = new MutationObserver(() => {
        if (stage.dataset.state !== "done") return;
        observer.disconnect();
        requestAnimationFrame(() => resolve([first, seconds()]));
    });
    observer.observe(stage, { attributeFilter: ["data-state"] });
    document.getElementById("start").click();
})"""


@contextmanager
def served(model: str) -> Iterator[str]:
    """`emu serve MODEL` in a process of its own; gives its address."""
    words = [sys.executable, "-m", "emu", "serve", model, "--port", "0"]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("{") and (told := json.loads(line)).get("event") == "listening":
                yield told["address"]
                break
        else:
            raise SystemExit(f"emu serve {model} did not start")
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def opened(address: str, **window: Any) -> Iterator[Page]:
    """The page in headless Chromium, once it knows the model."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_context(**window).new_page()
        page.goto(address)
        page.wait_for_selector("#controls:enabled")
        yield page
        browser.close()


def measure(page: Page, rounds: int) -> list[tuple[float, float]]:
    """Seconds to the first row and to the finished picture, for each of the rounds."""
    page.fill("#prompt", "a handwritten seven")
    pairs = []
    for _ in range(rounds + 1):
        first, whole = page.evaluate(DRAW)
        page.wait_for_selector("#start[aria-disabled=false]")
        pairs.append((first, whole))
    return pairs[1:]


def main() -> None:
    """Measure, write the CSV and show it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS / "serving_page.csv")
    options = parser.parse_args()
    with served("digits") as address, opened(address) as page:
        firsts, wholes = zip(*measure(page, options.rounds), strict=True)
        row = {
            "model": "digits, 32x32 pictures, guidance 3, deterministic",
            "first_row_s_median": f"{statistics.median(firsts):.3f}",
            "first_row_s_max": f"{max(firsts):.3f}",
            "picture_s_median": f"{statistics.median(wholes):.3f}",
            "picture_s_max": f"{max(wholes):.3f}",
            "rounds": options.rounds,
            "load_average": f"{os.getloadavg()[0]:.1f}",
            "cores": os.cpu_count(),
            "machine": machine_name("cpu"),
            "browser": f"Chromium {page.context.browser.version if page.context.browser else ''}",
        }
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
    print(row)


if __name__ == "__main__":
    main()
