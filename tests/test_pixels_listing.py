"""Which files of a folder are taken, in which order, and what is said of the others."""

import io
import logging
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from emu.cli.generate_videos import strip
from emu.documents import Video
from emu_tokenizers.pixels.listing import VIDEO_SUFFIXES, clips_under, is_ignored, picture_suffixes
from emu_tokenizers.pixels.sources import clip_sources, picture_files, picture_sources
from emu_tokenizers.pixels.streams import picture_stream
from emu_tokenizers.training.picture_data import PictureData
from tests.media_files import whole


def write_frames(folder, count: int = 12, name: str = "frame_{}.png", size: tuple[int, int] = (8, 8)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (10 * number, 0, 0)).save(folder / name.format(number))


def reds(images) -> list[int]:
    return [int(np.asarray(image)[0, 0, 0]) // 10 for image in images]


def test_names_are_in_the_order_in_which_people_count_by_every_door(tmp_path):
    write_frames(tmp_path / "f")
    expected = list(range(12))
    (clip,) = clip_sources(tmp_path / "f")
    assert reds(clip.read(0, 12)) == expected
    assert reds(source.read()[0] for source in picture_sources(tmp_path / "f")) == expected
    assert [int(file.stem.split("_")[1]) for file in picture_files(tmp_path / "f")] == expected
    assert reds(Video.open(tmp_path / "f").frames) == reds(Video.open([tmp_path / "f"]).frames) == expected
    sheet = np.asarray(strip([tmp_path / "f"]))  # every frame, in cells of 10 pixels
    assert [int(sheet[5, 5 + 10 * number, 0]) // 10 for number in range(12)] == expected


def test_clips_and_tar_files_are_in_that_order_too(tmp_path):
    for number in (10, 9, 1):
        write_frames(tmp_path / "clips" / f"clip{number}", 2)
    assert [clip.name for clip in clip_sources(tmp_path / "clips")] == ["clip1", "clip9", "clip10"]
    for number in (10, 9, 1):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as file:
            entry = tarfile.TarInfo(f"{number}.PNG")
            entry.size = len(whole("rgb.png"))
            file.addfile(entry, io.BytesIO(whole("rgb.png")))
    assert [source.name for source in picture_sources(f"webdataset:{tmp_path}/*.tar")] == [
        "1.tar/1.PNG",
        "9.tar/9.PNG",
        "10.tar/10.PNG",
    ]


@pytest.mark.parametrize(
    "ending",
    [".avif", ".jfif", ".jpe", ".JPG", ".mpo", ".jp2", ".ico", ".tga", ".dds", ".pgm", ".qoi", ".icns"],
)
def test_whatever_pillow_opens_is_taken(ending):
    assert ending.lower() in picture_suffixes()


def test_what_pillow_does_not_read_or_av_reads_better_is_not():
    assert not picture_suffixes() & (VIDEO_SUFFIXES | {".eps", ".wmf", ".h5", ".pdf", ".txt"})


def test_what_is_skipped_is_counted_and_said(tmp_path, caplog):
    for number, name in enumerate(["rgb.jpg", "still.avif", "progressive.jfif"]):
        for copy in range(3):
            (tmp_path / f"{copy}{number}{name}").write_bytes(whole(name))
    for name in ("a.txt", "b.txt", "c.heic", "README"):
        (tmp_path / name).write_text("no picture")
    with caplog.at_level(logging.WARNING):
        assert len(picture_files(tmp_path)) == 9
    assert "9 pictures; left out by their endings: 2 of .txt, 1 of .heic, 1 of no ending" in caplog.text


def test_what_systems_leave_behind_is_ignored_without_a_word(tmp_path, caplog):
    write_frames(tmp_path, 3)
    for name in (
        "._frame_0.png",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        ".hidden/a.png",
        "__MACOSX/frame_0.png",
        "@eaDir/frame_0.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        data = PictureData(str(tmp_path), size=8, images_per_step=8, steps_per_epoch=4)
        for _ in data.train_dataloader():
            pass
        assert len(data.pictures) == 3 and not data.bad
        assert len(Video.open(tmp_path)) == 3 and clip_sources(tmp_path)[0].num_frames == 3
    assert not caplog.text


def test_links_to_folders_are_followed_once_and_broken_ones_are_counted(tmp_path, caplog):
    for place in ("disk/a", "disk/b", "photos/own", "photos/.cache"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "0.png")
    links = {"all": "../disk", "again": "../disk/b", "up": "..", "self": ".", "same": "own", "kept": ".cache"}
    for name, target in links.items():
        (tmp_path / "photos" / name).symlink_to(target)
    (tmp_path / "photos" / "gone.png").symlink_to("../unmounted/1.png")
    with caplog.at_level(logging.WARNING, "emu.tokenizers"):
        found = [str(file.relative_to(tmp_path / "photos")) for file in picture_files(tmp_path / "photos")]
    assert found == ["again/0.png", "all/a/0.png", "kept/0.png", "own/0.png"]
    assert "1 links lead to nowhere" in caplog.text
    streamed = picture_stream(tmp_path / "photos")
    assert len([source for part in range(len(streamed.parts)) for source in streamed.sources(part)]) == 4


def test_hidden_members_of_tar_files_are_ignored(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name in ("./a.png", "._a.png", "__MACOSX/a.png", "b/.c.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(whole("rgb.png"))
            file.addfile(entry, io.BytesIO(whole("rgb.png")))
    assert [source.name for source in picture_sources(f"webdataset:{tmp_path}/a.tar")] == ["a.tar/./a.png"]


@pytest.mark.parametrize("name", ["../a.png", "./a.png", "a..png", "..a/b.png"])
def test_dots_that_hide_nothing(name):
    assert is_ignored(name) == name.startswith("..a")


def test_pictures_beside_videos_are_thumbnails(tmp_path, caplog):
    for name in ("h264.mp4", "moving.gif", "moving.webp"):
        (tmp_path / name).write_bytes(whole(name))
    write_frames(tmp_path, 2, "thumbnail{}.jpg")
    (tmp_path / "still.webp").write_bytes(whole("lossy.webp"))
    write_frames(tmp_path / "frames", 4)
    with caplog.at_level(logging.WARNING):
        found = clips_under(tmp_path)
    assert [files[0].name for files in found] == ["frame_0.png", "h264.mp4", "moving.gif", "moving.webp"]
    assert "left out 3 pictures that stand beside videos" in caplog.text


def test_an_empty_folder_and_one_of_other_files_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="it is empty"):
        picture_files(tmp_path)
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="other endings: 1 of .heic"):
        picture_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        clip_sources(tmp_path / "nowhere")


def test_a_whole_animation_is_meant_by_its_name_alone_or_in_a_list(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # none of this needs it
    (tmp_path / "a.gif").write_bytes(whole("moving.gif"))
    (tmp_path / "b.gif").write_bytes(whole("still.gif"))
    assert len(Video.open(tmp_path / "a.gif")) == len(Video.open([tmp_path / "a.gif"])) == 6
    assert len(Video.open([tmp_path / "a.gif", tmp_path / "b.gif"])) == 2  # of several, each is a picture
