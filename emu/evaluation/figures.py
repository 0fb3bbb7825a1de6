"""What report pages are made of: their head and style, and pictures inside the page."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass

STYLE = """
:root { color-scheme: light dark; --ink: #22262e; --page: #fff; --line: #d5d9e0; --faint: #e5e8ee; --note: #5a6270; --box: #f4f5f8;
  --short: #b3261e; --met: #1b7f3b; --model0: #1f6feb; --model1: #c2410c; --model2: #15803d; --model3: #7e22ce; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --page: #16181d; --line: #3a404b; --faint: #2a2f38; --note: #9aa4b2;
  --box: #20242c; --short: #ff8a80; --met: #6fd08c; --model0: #79b0ff; --model1: #ff9d66; --model2: #6fd08c; --model3: #cfa6ff; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--page); }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
img { max-width: 100%; image-rendering: pixelated; border-radius: 4px; } img.smooth { image-rendering: auto; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid var(--faint); }
td.number, th.number { font-variant-numeric: tabular-nums; text-align: right; } .short { color: var(--short); } .met { color: var(--met); }
p.note { color: var(--note); } pre { background: var(--box); padding: .8rem; overflow-x: auto; border-radius: 4px; }
.wide { overflow-x: auto; } .ends { color: var(--note); font-size: .85em; } td.number { white-space: nowrap; }
svg line { stroke-width: 2; }
.model0 { stroke: var(--model0); fill: var(--model0); }
.model1 { stroke: var(--model1); fill: var(--model1); }
.model2 { stroke: var(--model2); fill: var(--model2); }
.model3 { stroke: var(--model3); fill: var(--model3); }
"""


def html_page(title: str, body: str) -> str:
    """A page of this title and body."""
    head = f'<head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style></head>'
    return f'<!doctype html><html lang="en">{head}<body>{body}</body></html>\n'


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Attributes:
        title: heading.
        note: what one sees.
        data: the file.
        kind: "png" or "gif".
        smooth: whether a browser may smooth it.
    """

    title: str
    note: str
    data: bytes
    kind: str = "png"
    smooth: bool = False

    def to_html(self) -> str:
        """A section with the picture inside."""
        source = f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode()}"
        look = ' class="smooth"' if self.smooth else ""
        note = f'<p class="note">{html.escape(self.note)}</p>'
        return f'<h2>{html.escape(self.title)}</h2>{note}<img{look} alt="{html.escape(self.title)}" src="{source}">'
