"""Which files of a folder are pictures and which are clips, in the order in which people count them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import Image

from emu_tokenizers.files import natural_key
from emu_tokenizers.pixels.images import REFUSED_FORMATS, BadPicture, opened_image

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2ts", ".mts", ".3gp", ".wmv"}) | {
    ".asf", ".flv", ".ogv", ".ivf", ".mxf", ".y4m"}  # fmt: skip
ANIMATION_SUFFIXES = frozenset({".gif", ".apng", ".avifs"})
"""Pictures that move, by their name alone."""
PERHAPS_ANIMATED = frozenset({".webp", ".avif"})
"""Pictures of which the header must be asked; a PNG that moves is a clip where it is named itself."""
IGNORED_NAMES = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini"})
"""Files and folders that systems leave among pictures; names that begin with a dot, such as .DS_Store and ._x.jpg, are ignored too."""

logger = logging.getLogger("emu.tokenizers")


def picture_suffixes() -> frozenset[str]:
    """Endings of the formats that `open_image` reads here, in lower case."""
    endings = Image.registered_extensions()
    return frozenset(
        ending.lower()
        for ending, name in endings.items()
        if (name in Image.OPEN or name == "MPO")  # which opens as the JPEG that it begins with
        and name not in REFUSED_FORMATS
        and ending.lower() not in VIDEO_SUFFIXES
    )


def is_ignored(name: str) -> bool:
    """Whether a path, or a folder on its way, is not a picture of the user's: hidden, or left there by a system."""
    return any(part.startswith(".") or part.lower() in IGNORED_NAMES for part in Path(name).parts if part not in "..")


def is_animation(file: Path) -> bool:
    """Whether a picture file moves."""
    suffix = file.suffix.lower()
    if suffix not in PERHAPS_ANIMATED:
        return suffix in ANIMATION_SUFFIXES
    try:
        with opened_image(file, str(file)) as image:
            return getattr(image, "n_frames", 1) > 1
    except (BadPicture, FileNotFoundError):  # whoever reads it says so
        return False


def files_under(root: Path, suffixes: frozenset[str], what: str) -> list[Path]:
    """The files with these endings under a folder, in natural order; the others are counted in a warning.

    Raises:
        FileNotFoundError: no such folder, or no such files in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    found: list[Path] = []
    others: Counter[str] = Counter()
    for file in _walk(root):
        if file.suffix.lower() in suffixes:
            found.append(file)
        else:
            others[file.suffix.lower() or "no ending"] += 1
    left_out = ", ".join(f"{count} of {ending}" for ending, count in sorted(others.items(), key=_most_first)[:8])
    if not found:
        raise FileNotFoundError(
            f"no {what} under {root}" + (f"; its files have other endings: {left_out}" if others else "; it is empty")
        )
    if others:
        _say_once(f"{root}: {len(found)} {what}; left out by their endings: {left_out}")
    return sorted(found, key=lambda file: natural_key(file.relative_to(root)))


@cache
def _say_once(line: str) -> None:
    """Warn; a job lists one folder at several of its stages, and says so once."""
    logger.warning("%s", line)


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _walk(root: Path) -> Iterator[Path]:
    lost = 0
    for folder, names in walked(root):
        for name in names:
            file = folder / name
            if is_ignored(name):
                continue
            if file.is_file():
                yield file
            else:
                lost += file.is_symlink()
    if lost:
        logger.warning("%s: %d links lead to nowhere, and are left out", root, lost)


def walked(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all below it in natural order, hidden ones left out, each with the names of its files.

    A link to a folder is followed, but for one to a folder that comes anyway, or that holds the root.
    """
    top = Path(os.path.realpath(root))
    known = {top}

    def leads_on(folder: Path) -> bool:
        target = Path(os.path.realpath(folder))
        if not folder.is_symlink():
            return target not in known
        holders = known.intersection((target, *target.parents))
        if target in top.parents or not all(is_ignored(str(target.relative_to(holder))) for holder in holders):
            return False
        known.add(target)
        return True

    for folder, folders, names in os.walk(root, onerror=_say_what_is_left_out, followlinks=True):
        folders[:] = [
            name for name in sorted(folders, key=natural_key) if not is_ignored(name) and leads_on(Path(folder, name))
        ]
        yield Path(folder), names


def _say_what_is_left_out(error: OSError) -> None:
    logger.warning("%s cannot be listed, and is left out: %s", error.filename, error.strerror)


def clips_under(root: Path) -> list[list[Path]]:
    """The clips under a folder in natural order: one video file or animation each, or the pictures of a folder.

    Pictures beside videos are thumbnails of them, and are left out with a warning.

    Raises:
        FileNotFoundError: no such folder, or neither pictures nor videos in it.
    """
    alone: list[Path] = []
    frames: dict[Path, list[Path]] = {}
    for file in files_under(root, picture_suffixes() | VIDEO_SUFFIXES, "pictures and video files"):
        if file.suffix.lower() in VIDEO_SUFFIXES or is_animation(file):
            alone.append(file)
        else:
            frames.setdefault(file.parent, []).append(file)
    with_videos = {file.parent for file in alone if file.suffix.lower() in VIDEO_SUFFIXES}
    beside = [folder for folder in frames if folder in with_videos]
    if beside:
        count = sum(len(frames.pop(folder)) for folder in beside)
        logger.warning("%s: left out %d pictures that stand beside videos", root, count)
    found = [(file, [file]) for file in alone] + list(frames.items())
    return [files for _, files in sorted(found, key=lambda clip: natural_key(clip[0].relative_to(root)))]
