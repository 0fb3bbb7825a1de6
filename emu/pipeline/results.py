"""Results of generation."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from emu.media import gif_bytes, mp4_bytes, png_bytes
from emu_tokenizers.files import new_folder, write_file

FRAME_FILES = ("[0-9][0-9][0-9][0-9]*.png",)


@dataclass(frozen=True)
class ImageResult:
    """A generated picture.

    Attributes:
        image: the picture.
        codes: (h, w) int64, 0-based codes of the vision tokenizer; a last axis where it has several codebooks.
        prompt: the prompt.
        seed: seed of its noise.
        settings: everything else that it depends on, named as in `Emu.generate_images`; JSON types.
        model: name and fingerprint of the model.
        decoded: what the codes decode to, if `image` keeps pixels of an edited picture; None if that is `image` itself.
    """

    image: Image.Image
    codes: Tensor
    prompt: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    decoded: Image.Image | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What its files say; `emu.media.read_provenance` reads it back."""
        return _about(self)

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"ImageResult({width}x{height} pixels, prompt {reprlib.repr(self.prompt)}, seed {self.seed})"

    def save(self, path: str | Path) -> None:
        """Write a PNG with metadata that says how it was made (`about`), and that a model made it."""
        write_file(Path(path), png_bytes(self.image, self.about))


@dataclass(frozen=True)
class VideoResult:
    """A generated clip.

    Attributes:
        frames: its pictures in order.
        codes: (t, h, w) int64, 0-based codes of the vision tokenizer; a last axis where it has several codebooks.
        fps: frames per second.
        prompt: the prompt.
        seed: seed of its noise.
        settings: everything else that it depends on, named as in `Emu.generate_videos`; JSON types.
        model: name and fingerprint of the model.
    """

    frames: list[Image.Image]
    codes: Tensor
    fps: float
    prompt: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """What its files say; `emu.media.read_provenance` reads it back."""
        return _about(self)

    def __repr__(self) -> str:
        width, height = self.frames[0].size
        clip = f"{len(self.frames)} frames of {width}x{height} pixels, {self.fps:g} fps"
        return f"VideoResult({clip}, prompt {reprlib.repr(self.prompt)}, seed {self.seed})"

    def save(self, path: str | Path) -> None:
        """Write `name.gif`, `name.mp4` (needs PyAV), or a folder of PNG frames if the name has no suffix; existing frames are replaced.

        Each file has metadata that says how it was made (`about`), and that a model made it.

        Raises:
            ValueError: the suffix is none of these.
        """
        path = Path(path)
        if path.suffix == ".gif":
            write_file(path, gif_bytes(self.frames, self.fps, self.about))
        elif path.suffix == ".mp4":
            write_file(path, mp4_bytes(self.frames, self.fps, self.about))
        elif not path.suffix:
            with new_folder(path, FRAME_FILES) as folder:
                for index, frame in enumerate(self.frames):
                    (folder / f"{index:04d}.png").write_bytes(png_bytes(frame, {**self.about, "frame": index}))
        else:
            raise ValueError(f"a clip is written as .gif, .mp4 or a folder of frames, not as {path.suffix!r}")


def _about(result: ImageResult | VideoResult) -> dict[str, Any]:
    return {
        "prompt": result.prompt,
        "seed": result.seed,
        "model": result.model,
        "settings": dict(result.settings),
    }
