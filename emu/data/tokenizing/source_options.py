"""What users say about a source besides its name."""

from __future__ import annotations

from dataclasses import dataclass, fields

ORDERS = ("caption,image", "image,caption")


@dataclass(frozen=True)
class SourceOptions:
    """Options of sources; each source says which of them it takes.

    Attributes:
        caption: column of a table that holds texts.
        image: column of a table that holds pictures.
        order: of captioned pictures, one of `ORDERS`.
        split: of a dataset.
        streaming: read a dataset as a stream, without a copy on the disk.
        fps: frames a second at which clips are read; None is the file's own rate.
        clip_frames: frames of a clip; a longer file becomes several. None takes each file as one clip.
        stride: seconds from the start of one clip of a file to that of the next; None is their length.
    """

    caption: str | None = None
    image: str | None = None
    order: str = ORDERS[0]
    split: str | None = None
    streaming: bool = False
    fps: float | None = None
    clip_frames: int | None = None
    stride: float | None = None

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"--order is {self.order!r}; expected {' or '.join(ORDERS)}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"--fps is {self.fps}; expected a number of frames a second, at most 1000")
        if self.clip_frames is not None and self.clip_frames < 1:
            raise ValueError(f"--clip-frames is {self.clip_frames}; expected 1 or more")
        if self.stride is not None and not 0 < self.stride < 1 << 24:
            raise ValueError(f"--stride is {self.stride}; expected a number of seconds above 0")
        if self.stride is not None and self.clip_frames is None:
            raise ValueError("--stride is given without --clip-frames; say how many frames a clip has")

    def given(self) -> list[str]:
        """Names of the options that are not at their default."""
        return [one.name for one in fields(self) if getattr(self, one.name) != one.default]
