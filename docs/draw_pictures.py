"""Draw docs/pictures.png with the bundled model of `emu demo pictures`: python docs/draw_pictures.py

Two pairs of rows, nothing picked. New combinations of person and skin tone, each above the real picture, which the model never saw; then
pictures that are recoloured by words, each above the drawing that it became.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from emu import Emu
from emu.demo.pictures.emoji import load_emoji, people_of, person_and_tone, tone_words
from emu.demo.pictures.emoji_measures import recoloured
from emu.media import png_bytes, tiled
from emu_tokenizers.pixels.images import to_rgb

COLUMNS, ZOOM = 12, 2
FILE = Path(__file__).with_name("pictures.png")


def main() -> None:
    """Write the picture."""
    emu, emoji = Emu.from_pretrained("pictures", device="cpu"), load_emoji()
    held_out = set(emoji.held_out)
    rows = emoji.held_out[:: len(emoji.held_out) // COLUMNS][:COLUMNS]
    drawn = [to_rgb(one.image) for one in emu.generate_images([emoji.captions[row] for row in rows])]
    given, words = [], []
    people = people_of(emoji.captions)
    for row in rows:
        name, tone = person_and_tone(emoji.captions[row]) or ("", "")
        given.append(next(other for other in people[name].values() if other not in held_out))
        words.append(tone_words(tone))
    changed = [Image.fromarray(picture) for picture in recoloured(emu, emoji.pictures[given], words, 1, 0)]
    real, before = ([Image.fromarray(np.asarray(emoji.pictures[row])) for row in chosen] for chosen in (rows, given))
    page = tiled([*drawn, *real, *before, *changed], COLUMNS)
    page = page.resize((ZOOM * page.width, ZOOM * page.height), Image.Resampling.NEAREST)
    FILE.write_bytes(png_bytes(page))
    print("; ".join(emoji.captions[row] for row in rows))


if __name__ == "__main__":
    main()
