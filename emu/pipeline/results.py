"""What generation hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
        prompt: what it was drawn for.
        seed: what its noise was keyed by.
    """

    image: Image.Image
    codes: Tensor
    prompt: str
    seed: int

    def save(self, path: str | Path) -> None:
        """Write a PNG that carries prompt and seed."""
        write_file(Path(path), png_bytes(self.image, {"prompt": self.prompt, "seed": str(self.seed)}))


@dataclass(frozen=True)
class VideoResult:
    """A generated clip.

    Attributes:
        frames: its pictures in order.
        codes: (t, h, w) int64, 0-based codes of the vision tokenizer; a last axis where it has several codebooks.
        fps: frames a second.
        prompt: what it was made for.
        seed: what its noise was keyed by.
    """

    frames: list[Image.Image]
    codes: Tensor
    fps: float
    prompt: str
    seed: int

    def save(self, path: str | Path) -> None:
        """Write `name.gif`, `name.mp4` (needs PyAV), or a folder of PNG frames where the name has no suffix; it replaces frames.

        Raises:
            ValueError: another suffix.
        """
        path = Path(path)
        if path.suffix == ".gif":
            write_file(path, gif_bytes(self.frames, self.fps))
        elif path.suffix == ".mp4":
            write_file(path, mp4_bytes(self.frames, self.fps))
        elif not path.suffix:
            with new_folder(path, FRAME_FILES) as folder:
                for index, frame in enumerate(self.frames):
                    about = {"prompt": self.prompt, "seed": str(self.seed), "frame": str(index), "fps": str(self.fps)}
                    (folder / f"{index:04d}.png").write_bytes(png_bytes(frame, about))
        else:
            raise ValueError(f"a clip is written as .gif, .mp4 or a folder of frames, not as {path.suffix!r}")
