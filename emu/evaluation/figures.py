"""What report pages are made of: their head and style, and pictures inside the page."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #22262e; background: #fff; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #d5d9e0; }
img { max-width: 100%; image-rendering: pixelated; border-radius: 4px; } img.smooth { image-rendering: auto; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #e5e8ee; }
td.number { font-variant-numeric: tabular-nums; text-align: right; } .short { color: #b3261e; } .met { color: #1b7f3b; }
p.note { color: #5a6270; } pre { background: #f4f5f8; padding: .8rem; overflow-x: auto; border-radius: 4px; }
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
