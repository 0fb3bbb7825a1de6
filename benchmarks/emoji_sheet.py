"""Draw the pictures of `emu demo pictures`, emu/demo/pictures/emoji.webp and emu/demo/pictures/emoji.json, from Noto's emoji font.

python benchmarks/emoji_sheet.py NotoColorEmoji.ttf emoji-test.txt

The font is that of Debian's fonts-noto-color-emoji (version 2.042), the list of names that of its unicode-data (Unicode 15.0); Pillow must
have Raqm, which joins the characters of one emoji. The pictures of people in five skin tones come first, a person's side by side, then
animals, food and things. What is held out is a function of the number of people alone.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
PEOPLE = ("person", "person-role", "person-gesture", "person-sport")
NO_SKIN = ("snowboarder", "horse racing", "person golfing", "man golfing", "woman golfing")
"""Those of them whose five pictures are one, or almost; others stand in for them."""
FANTASY = ("merperson", "mage", "fairy", "vampire", "elf")
GROUPS = ("Animals & Nature", "Food & Drink", "Activities")
SUBGROUPS = (
    *("transport-ground", "transport-water", "transport-air", "musical-instrument", "clothing", "tool", "household"),
    *("sky & weather", "light & video", "computer", "writing", "science"),
)
LEFT_OUT = ("award-medal", "game")
OTHERS = 610
FONT_SIZE, DRAWN, SIDE, COLUMNS = 109, 136, 64, 40
COLOURS = 48
HELD_OUT = 89
DEMO = Path(__file__).parents[1] / "emu" / "demo" / "pictures"


def listed(file: Path) -> list[tuple[str, str, str, str]]:
    """(characters, name, group, subgroup) of every emoji of Unicode's list."""
    rows, group, subgroup = [], "", ""
    for line in file.read_text("utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif "; fully-qualified" in line:
            codes, _, rest = line.partition(";")
            name = re.sub(r"^\S+ E\S+ ", "", rest.partition("#")[2].strip()).replace("’", "'")
            rows.append(("".join(chr(int(code, 16)) for code in codes.split()), name, group, subgroup))
    return rows


def people(rows: list[tuple[str, str, str, str]]) -> dict[str, Mapping[str, str]]:
    """Characters by tone of each person that there is in exactly the five tones."""
    toned = re.compile(rf"(.*): ({'|'.join(TONES)}) skin tone(.*)")
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for characters, name, _, subgroup in rows:
        match = toned.fullmatch(name)
        if (
            match
            and "skin tone" not in match[3]
            and (subgroup in PEOPLE or match[1] in FANTASY)
            and ", " not in match[1]
        ):
            found[match[1] + match[3]][match[2]] = characters
    return {name: tones for name, tones in found.items() if len(tones) == len(TONES) and name not in NO_SKIN}


def others(rows: list[tuple[str, str, str, str]]) -> dict[str, str]:
    """Characters of animals, food and things by name."""
    chosen = [
        (name, characters)
        for characters, name, group, subgroup in rows
        if (group in GROUPS or subgroup in SUBGROUPS) and subgroup not in LEFT_OUT and ":" not in name
    ]
    return dict(chosen[:OTHERS])


def drawn(characters: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """An emoji on white, in few colours so that the sheet stays small."""
    image = Image.new("RGB", (DRAWN, DRAWN), "white")
    ImageDraw.Draw(image).text((0, 4), characters, font=font, embedded_color=True)
    small = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return small.quantize(COLOURS, dither=Image.Dither.NONE).convert("RGB")


def held_out(count: int) -> dict[int, str]:
    """The tone that is held out of some people, by their number: every tone of equally many, one of a person at most."""
    order = np.random.default_rng(0).permutation(count)[:HELD_OUT].tolist()
    return {person: TONES[place % len(TONES)] for place, person in enumerate(order)}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("font", type=Path)
    parser.add_argument("names", type=Path)
    options = parser.parse_args()
    font = ImageFont.truetype(str(options.font), FONT_SIZE)
    rows = listed(options.names)
    persons, things = people(rows), others(rows)
    missing = held_out(len(persons))
    table, pictures = [], []
    for number, (name, tones) in enumerate(persons.items()):
        for tone in TONES:
            table.append({"name": name, "tone": tone, "held_out": missing.get(number) == tone})
            pictures.append(drawn(tones[tone], font))
    for name, characters in things.items():
        table.append({"name": name})
        pictures.append(drawn(characters, font))
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(pictures) // COLUMNS) * SIDE), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
    written = io.BytesIO()
    sheet.save(written, "webp", lossless=True, quality=100, method=6)
    (DEMO / "emoji.webp").write_bytes(written.getvalue())
    (DEMO / "emoji.json").write_text(
        "[\n" + ",\n".join(json.dumps(line) for line in table) + "\n]\n", "utf-8", newline="\n"
    )
    print(f"{len(persons)} people, {len(things)} others, {sum(row.get('held_out', False) for row in table)} held out")


if __name__ == "__main__":
    main()
