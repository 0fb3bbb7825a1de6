"""The site: it builds without a warning and without a network, every link leads somewhere, and readers fetch nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.docs
FETCHED = {
    **dict.fromkeys(("script", "img", "iframe", "audio", "video", "source", "embed", "track", "input"), "src"),
    "link": "href",
    "object": "data",
}
"""Tag -> the attribute whose address a browser fetches without being asked."""


class Page(HTMLParser):
    """What a page fetches, links to and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        self.classes |= set(given.get("class", "").split())
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if FETCHED.get(tag) in given:
            self.fetched.append(given[FETCHED[tag]])


def is_external(address: str) -> bool:
    return address.startswith("//") or bool(re.match(r"[a-z]+:", address)) and not address.startswith("data:")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. Proxies that nobody answers stand in for a machine without a network."""
    target = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=ROOT,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return target


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_markdown_file_is_a_page(pages, site):
    written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert written | {Path("contributing.html"), Path("recipes.html")} <= {path.relative_to(site) for path in pages}


def test_links_lead_to_pages_and_places_that_exist(pages, site):
    wrong = []
    for path, page in pages.items():
        if path.name == "404.html":  # its addresses begin at the site's root
            continue
        for link in page.links:
            if is_external(link):
                continue
            address, place = urldefrag(unquote(link))
            target = (path.parent / address).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (place and target in pages and place not in pages[target].names | {"__top"}):
                wrong.append(f"{path.relative_to(site)} links to {link}")
    assert not wrong, "\n".join(wrong)


def test_pages_fetch_nothing_from_elsewhere(pages, site):
    wrong = [
        f"{path.relative_to(site)} fetches {one}"
        for path, page in pages.items()
        for one in page.fetched
        if is_external(one)
    ]
    assert not wrong, "\n".join(wrong)


def test_styles_fetch_nothing_from_elsewhere(site):
    styles = list(site.rglob("*.css"))
    assert styles
    for style in styles:
        addresses = re.findall(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""", style.read_text())
        assert not [one for pair in addresses for one in pair if one and is_external(one)], style.name


def test_scripts_find_no_reason_to_fetch_anything(pages, site):
    # The theme's script would fetch mermaid for diagrams, and figures of GitHub for a repository: pages have neither.
    assert not any({"mermaid", "md-source"} & page.classes for page in pages.values())
    known = {"unpkg.com", "api.github.com", "lunrjs.com", "tartarus.org", "bit.ly", "clipboardjs.com"}
    scripts = [*site.glob("assets/javascripts/bundle.*.js"), *site.glob("assets/javascripts/workers/search.*.js")]
    assert len(scripts) == 2
    for script in scripts:
        assert set(re.findall(r"https?://([a-z0-9.-]+)", script.read_text())) <= known, script.name


def test_every_public_name_is_in_the_reference(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}
    names = "".join(
        re.findall(r"^```names\n(.*?)^```", (ROOT / "docs" / "names.md").read_text(), re.DOTALL | re.MULTILINE)
    )
    missing = [name for name in re.findall(r"^[\w.]+", names, re.MULTILINE) if name not in documented]
    assert not missing, f"on docs/names.md and on no page of docs/api: {missing}"


def test_search_finds_what_users_call(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    places = {entry["location"] for entry in index["docs"]}
    assert {"api/emu.html#emu.Emu.generate_images", "architecture.html#how-to-add"} <= places
