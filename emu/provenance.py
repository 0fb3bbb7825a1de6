"""What a generated file says about itself: how it was made, and that a model made it.

All kinds of files carry the same XMP packet (ISO 16684-1): IPTC's digital source type "trained algorithmic media", which tells readers of
metadata that the content is synthetic, and the settings as JSON in a property of ours. XMP is made to be found by its marks, so that one
function reads it back from PNG, GIF and MP4. Nothing in it depends on the time, so equal requests give equal bytes.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from emu import __version__

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
LIBRARY = f"emu-tokens {__version__}"
NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "emu": "urn:emu-tokens:provenance:1",
}
BEGIN, END = b"<?xpacket begin=", b"<?xpacket end="
LONGEST = 1 << 20
"""Bytes of a packet that is read at most."""


def as_json(about: Mapping[str, Any]) -> str:
    """What is told, as JSON of ASCII characters alone: whatever a prompt holds goes through XML, chunks and tags unchanged."""
    return json.dumps(dict(about), ensure_ascii=True)


def readable(text: str) -> str:
    """A text for the places that people look at: characters that no file format takes are replaced."""
    shown = "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)
    return shown.encode("utf-8", "replace").decode("utf-8")


def xmp_packet(about: Mapping[str, Any]) -> bytes:
    """The packet of a generated file.

    Args:
        about: how it was made, of JSON's types: prompt, seed, model, settings, ...
    """
    names = "".join(f'\n    xmlns:{name}="{uri}"' for name, uri in NAMESPACES.items() if name != "rdf")
    told = {
        "xmp:CreatorTool": LIBRARY,
        "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
        "emu:provenance": as_json(about),
    }
    properties = "".join(f"\n    {name}={quoteattr(value)}" for name, value in told.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        f' <rdf:RDF xmlns:rdf="{NAMESPACES["rdf"]}">\n  <rdf:Description rdf:about=""{names}{properties}/>\n </rdf:RDF>\n'
        '</x:xmpmeta>\n<?xpacket end="r"?>'
    ).encode()


def read_provenance(path: str | Path) -> dict[str, Any]:
    """What a generated file says about itself.

    Args:
        path: a PNG, GIF or MP4 file, or a folder of frames, of which the first is read.

    Returns:
        `prompt`, `seed`, `model`, `settings`, ..., and `library` and `digital_source_type`; empty where the file tells nothing.

    Raises:
        FileNotFoundError: there is no such file, or no picture in the folder.
        ValueError: what the file tells cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        frames = sorted(path.glob("*.png"))
        if not frames:
            raise FileNotFoundError(f"{path} holds no PNG frames; expected a folder that VideoResult.save wrote")
        path = frames[0]
    packet = _find_packet(path)
    if packet is None:
        return {}
    try:
        if b"<!" in packet:
            raise ValueError("it declares entities")  # XMP has none, and they can grow without bound
        root = ElementTree.fromstring(packet)
        found = root.find(f".//{{{NAMESPACES['rdf']}}}Description")
        told = {} if found is None else dict(found.attrib)
        about = json.loads(told.get(f"{{{NAMESPACES['emu']}}}provenance", "{}"))
        if not isinstance(about, dict):
            raise ValueError("its provenance is not a table")
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"the XMP packet of {path} cannot be read: {error}") from error
    kept = {"library": ("xmp", "CreatorTool"), "digital_source_type": ("Iptc4xmpExt", "DigitalSourceType")}
    for name, (space, key) in kept.items():
        value = told.get(f"{{{NAMESPACES[space]}}}{key}")
        if value is not None:
            about[name] = value
    return about


def _find_packet(path: Path) -> bytes | None:
    """The last XMP packet of a file, without its marks."""
    if not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = data.rfind(BEGIN)  # ours is the last: what stands before it may be a prompt that looks like one
        start = data.find(b"?>", begin) + 2
        end = data.find(END, start)
        if begin < 0 or start < 2 or end < 0 or end - start > LONGEST:
            return None
        return data[start:end]
