"""Pictures of any format and mode as people see them: upright, in RGB, transparency over white. The one reader of pictures.

This module and those that decode clips import Pillow and numpy alone, so that the process which decodes clips starts in a moment.
"""

from __future__ import annotations

import errno
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 60_000_000
"""Largest picture that is read: those of cameras of 50 megapixels, and what decoding and conversion take stays within 1 GiB."""
_TIMES_AS_COSTLY = {"JPEG2000": 2}
"""Formats of which the decoder takes more memory for a pixel, and by how much."""
REFUSED_FORMATS = {
    "EPS": "Pillow starts another program (Ghostscript) to read it",
    "BUFR": "Pillow knows its name only",
    "GRIB": "Pillow knows its name only",
    "HDF5": "Pillow knows its name only",
    "MPEG": "a video, which Pillow knows by name only",
    "WMF": "Pillow reads it on Windows only",
}
"""Formats that Pillow opens and we do not, each with the reason."""
ORIENTATION = 0x0112
"""The only EXIF tag that is read."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND_PIXELS = 1 << 20
"""Pixels that are converted at a time, so that conversion needs little memory besides its input and output."""


class BadPicture(ValueError):
    """A picture or clip that cannot be used.

    Attributes:
        reason: why, in few words, to count by: "not a picture", "not a video", "empty", "too large", "damaged", "unreadable",
            "several pages"; of clips also "crashed" and "timeout".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


@contextmanager
def contained(name: str) -> Iterator[None]:
    """Turn whatever a stranger's file makes a decoder raise into a `BadPicture` that names the file.

    Raises:
        BadPicture: instead of any other error, save FileNotFoundError and a missing package, which are left as they are.
    """
    try:
        yield
    except (BadPicture, FileNotFoundError, ModuleNotFoundError):
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise BadPicture(
            "too large", f"{name} is too large: {error or 'it needs more memory than there is'}"
        ) from error
    except UnidentifiedImageError as error:
        raise BadPicture("not a picture", f"{name} is not a picture that can be read") from error
    except Exception as error:
        # Decoders of damaged files raise almost anything: struct.error, KeyError, zlib.error, RecursionError, ...
        if isinstance(error, OSError) and error.strerror and error.errno != errno.EINVAL:  # that is a seek to nowhere
            raise BadPicture("unreadable", f"{name} cannot be read: {error.strerror}") from error
        raise BadPicture("damaged", f"{name} cannot be read to its end: {error or type(error).__name__}") from error


def existing_file(source: str | os.PathLike) -> Path:
    """The path of a file that is there.

    Raises:
        FileNotFoundError: it is not there, or is a folder, a device or a pipe.
    """
    path = Path(source)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name that no file can have: too long, or with a zero byte
        shown = repr(str(path)[:80])
        raise FileNotFoundError(f"there is no file {shown}...; the system takes no such name") from None
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder; expected a file")
    raise FileNotFoundError(f"there is no file {path}")


def readable_formats() -> list[str]:
    """Names of the formats that Pillow opens here (its plugins included), less `REFUSED_FORMATS`."""
    Image.init()
    return [name for name in Image.ID if name not in REFUSED_FORMATS]


@contextmanager
def opened_image(
    source: str | os.PathLike | bytes, name: str, max_pixels: int = MAX_PIXELS, formats: list[str] | None = None
) -> Iterator[Image.Image]:
    """A picture as Pillow opens it: its header is read and its size checked, nothing is decoded yet.

    What goes wrong inside the block is the file's fault too.

    Args:
        source: a file, or the bytes of one.
        name: what messages call it.
        max_pixels: largest width times height.
        formats: those to try where Pillow has them; all readable ones by default.

    Raises:
        BadPicture: it is not a picture, too large, empty or damaged.
    """
    with contained(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of odd files is said by the error, or does no harm
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        known = [kind for kind in readable_formats() if formats is None or kind in formats]
        with Image.open(file, formats=known) as image:
            width, height = image.size
            limit = max_pixels // _TIMES_AS_COSTLY.get(image.format or "", 1)
            if width * height > limit:
                raise BadPicture(
                    "too large", f"{name} has {width}x{height} pixels, more than {limit} allowed; make it smaller"
                )
            if not width * height:
                raise BadPicture("empty", f"{name} is empty: a picture of {width}x{height} pixels")
            yield image


def open_image(source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """An upright RGB picture from a file.

    Args:
        source: a file in any format that Pillow reads, or the bytes of one; of an animated one, the first frame.
        max_pixels: largest width times height; checked against the header, before anything is decoded.
        name: what messages call it, its path where none is given.

    Raises:
        FileNotFoundError: there is no such file.
        BadPicture: a ValueError; it is not a picture, is larger than `max_pixels`, is empty, is damaged, or is a TIFF of several pages,
            of which no one is the picture (`Video.open` reads them as a clip).
    """
    path = None if isinstance(source, bytes) else existing_file(source)
    name = name or ("a picture" if path is None else str(path))
    with opened_image(source if path is None else path, name, max_pixels) as image:
        if image.format == "TIFF" and len(pages_of(image)) > 1:
            raise BadPicture(
                "several pages", f"{name} has several pages; save each as a picture, or read it as a clip of frames"
            )
        return to_rgb(image, name)


def pages_of(image: Image.Image, limit: int = 2) -> list[int]:
    """Numbers of the first pages of a TIFF, those left out that are a smaller copy of another or its mask; at most `limit` of them."""
    found = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        tags = getattr(image, "tag_v2", {})
        kind, old_kind = tags.get(254, 0), tags.get(255, 1)  # NewSubfileType: bits; SubfileType: 2 is a smaller copy
        if not (isinstance(kind, int) and kind & 0b101) and old_kind != 2:
            found.append(number)
        if len(found) == limit:
            break
    image.seek(found[0] if found else 0)
    return found or [0]


def to_rgb(image: Image.Image, name: str | None = None) -> Image.Image:
    """An upright RGB copy of a picture of any mode; of an animated one, the frame at which it stands.

    Nothing of what the file says about itself is kept. Transparency is laid over white. 16-bit grey covers 0 to 65,535; 32-bit grey is
    taken for 16-bit where a value exceeds 255; floating point covers 0 to 1, to 255 or to 65,535: the first that holds its largest value.

    Args:
        image: any picture of Pillow's.
        name: what messages call it, the name of its file by default.

    Raises:
        BadPicture: a ValueError; the picture is empty or its file cannot be read to its end.
    """
    name = name or str(getattr(image, "filename", "") or "the picture")
    if 0 in image.size:
        raise BadPicture("empty", f"{name} is empty: a picture of {image.size[0]}x{image.size[1]} pixels")
    with contained(name):
        image.load()
        turned = _upright(image)
        if turned.mode == "RGB" and "transparency" not in turned.info:
            found = turned.copy() if turned is image else turned
            found.info = {}  # an orientation that stayed would be applied a second time
            return found
        scale = _scale(turned)
        found = Image.new("RGB", turned.size)
        rows = max(1, _BAND_PIXELS // turned.width)
        for top in range(0, turned.height, rows):
            band = turned.crop((0, top, turned.width, min(top + rows, turned.height)))
            found.paste(_flat(band, scale), (0, top))
        return found


def as_arrays(images: Sequence[Image.Image]) -> np.ndarray:
    """(N, H, W, 3) uint8: pictures of one size, by `to_rgb`."""
    return np.stack([np.asarray(to_rgb(image)) for image in images])


def fit_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture in the shape of (height, width), resampled to that size (Lanczos)."""
    height, width = size
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation asks for; the picture itself where it asks for nothing."""
    try:
        turn = _TURNS.get(image.getexif()[ORIENTATION]) if ORIENTATION in image.getexif() else None
    except Exception:  # any damage to what a camera wrote about the picture; the pixels do not suffer from it
        return image
    return image if turn is None else image.transpose(turn)


def _scale(image: Image.Image) -> float | None:
    """What brings values of deep grey modes to 0..255; None for other modes."""
    if image.mode.startswith("I;16"):
        return 255 / 65535
    if image.mode not in ("I", "F"):
        return None
    values = np.asarray(image)
    largest = float(values.max(where=np.isfinite(values), initial=0.0))
    if image.mode == "F" and largest <= 1:
        return 255.0
    return 1.0 if largest <= 255 else 255 / 65535


def _flat(image: Image.Image, scale: float | None) -> Image.Image:
    """A band of a picture in RGB, transparency laid over white."""
    if scale is not None:
        values = np.asarray(image)
        level = np.nan_to_num(values.astype(np.float64), posinf=np.inf, neginf=-np.inf) * scale
        grey = np.clip(np.rint(level), 0, 255).astype(np.uint8)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey = np.where(values == transparent, np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode == "La":  # Pillow brings it to RGBA by way of LA only
            image = image.convert("LA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")
