"""Where pictures and clips come from: every route on small files, limits that hold, and bad samples that are named."""

import io
import sys
import tarfile
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from emu_tokenizers.pixels.images import BadPicture
from emu_tokenizers.pixels.sources import clip_sources, picture_sources
from emu_tokenizers.pixels.tars import tar_members
from emu_tokenizers.pixels.videos import require_video_reader
from emu_tokenizers.training.picture_data import PictureData
from emu_tokenizers.training.pixel_samples import BadSamples, Samples

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200), (200, 0, 200)]


def picture(number: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[number % len(COLOURS)])


@dataclass(frozen=True)
class Unreadable:
    """A source that may be bad."""

    number: int
    bad: bool
    num_frames: int = 1

    @property
    def name(self) -> str:
        return f"source {self.number}"

    def read(self, start: int = 0, count: int = 1) -> list[Image.Image]:
        if self.bad:
            raise BadPicture("damaged", f"{self.name} is damaged")
        return [picture(self.number)]


def png(number: int) -> bytes:
    written = io.BytesIO()
    picture(number).save(written, format="png")
    return written.getvalue()


def write_tar(path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))


def write_gif(path, count: int = 6) -> None:
    first, *rest = (picture(number) for number in range(count))
    first.save(path, save_all=True, append_images=rest, duration=100)


def write_mp4(path, count: int = 30) -> None:
    """Grey frames, each 8 levels brighter than the one before."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1", "g": "8"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(count):
            array = np.full((16, 32, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())


def colour(image: Image.Image) -> tuple[int, ...]:
    return image.getpixel((3, 3))


def test_one_file_is_a_source_too(tmp_path):
    picture(1).save(tmp_path / "one.png")
    (source,) = picture_sources(tmp_path / "one.png")
    assert colour(source.read()[0]) == COLOURS[1]


def test_members_of_tar_files_are_read_where_they_lie(tmp_path):
    write_tar(tmp_path / "a.tar", {"000.png": png(0), "000.txt": b"a caption", "001.png": png(1)})
    write_tar(tmp_path / "b.tar", {"deep/002.png": png(2)})
    found = picture_sources(f"webdataset:{tmp_path}/*.tar")
    assert [colour(source.read()[0]) for source in found] == COLOURS[:3]
    assert found[2].name == "b.tar/deep/002.png"


def test_links_and_devices_in_a_tar_file_are_no_members(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/hostname"
            file.addfile(entry)
        entry = tarfile.TarInfo("../../outside.png")
        entry.size = len(png(0))
        file.addfile(entry, io.BytesIO(png(0)))
    (only,) = picture_sources(f"webdataset:{tmp_path}/a.tar")
    assert colour(only.read()[0]) == COLOURS[0]  # read in place; its name is never used as a path


def test_tar_files_have_limits(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{number}.png": png(number) for number in range(3)})
    found = tar_members(f"{tmp_path}/a.tar", max_member_bytes=10)
    with pytest.raises(BadPicture, match="more than 10 allowed"):
        found[0].read()
    with pytest.raises(ValueError, match="more than 2 members"):
        tar_members(f"{tmp_path}/a.tar", max_members=2)
    write_tar(tmp_path / "b.tar.gz", {"0.png": png(0)}, mode="w:gz")
    with pytest.raises(ValueError, match="not an uncompressed tar"):
        picture_sources(f"webdataset:{tmp_path}/b.tar.gz")
    with pytest.raises(FileNotFoundError, match="no tar files"):
        picture_sources(f"webdataset:{tmp_path}/c.tar")
    with pytest.raises(FileNotFoundError, match="end in"):
        clip_sources(f"webdataset:{tmp_path}/a.tar")


def test_a_tar_file_cut_short_is_damaged(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": png(0)})
    (member,) = picture_sources(f"webdataset:{tmp_path}/a.tar")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:540])
    with pytest.raises(BadPicture, match="ends within") as caught:
        member.read()
    assert caught.value.reason == "damaged"


@pytest.mark.parametrize("split", [None, "train"])
def test_a_dataset_saved_to_disk_is_read_without_a_network(tmp_path, split):
    datasets = pytest.importorskip("datasets")
    rows = {"photo": [{"bytes": png(number), "path": None} for number in range(3)] + [{"bytes": b"no", "path": None}]}
    table = datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())
    (table if split is None else datasets.DatasetDict({split: table})).save_to_disk(tmp_path / "saved")
    found = picture_sources(f"dataset:{tmp_path}/saved", column="photo")
    assert [colour(source.read()[0]) for source in found[:3]] == COLOURS[:3]
    with pytest.raises(BadPicture, match="row 3 is not a picture"):
        found[3].read()
    with pytest.raises(ValueError, match=r"no column 'image'; it has \['photo'\]"):
        picture_sources(f"dataset:{tmp_path}/saved")


def test_a_builder_of_the_datasets_library_takes_its_arguments(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for number in range(2):
        picture(number).save(tmp_path / "photos" / f"{number}.png")
    found = picture_sources(f"dataset:imagefolder,data_dir={tmp_path}/photos,cache_dir={tmp_path}/cache")
    assert [colour(source.read()[0]) for source in found] == COLOURS[:2]


def test_gifs_and_folders_of_frames_are_clips_without_any_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    write_gif(tmp_path / "b.gif")
    (tmp_path / "a").mkdir()
    for number in range(3):
        picture(number, (24 + number, 16)).save(tmp_path / "a" / f"{number}.png")
    frames, gif = clip_sources(tmp_path)
    assert (frames.num_frames, gif.num_frames) == (3, 6)
    assert [colour(frame) for frame in gif.read(2, 3)] == COLOURS[2:5]
    assert len(gif.read(5, 9)) == 1
    assert [frame.size for frame in frames.read(0, 3)] == [(24, 16)] * 3  # the size of the first


def test_video_files_give_exactly_the_frames_that_are_asked_for(tmp_path):
    write_mp4(tmp_path / "a.mp4")
    (clip,) = clip_sources(tmp_path)
    assert clip.num_frames == 30
    for start, count in ((0, 3), (7, 4), (8, 1), (19, 30)):
        levels = [colour(frame)[0] for frame in clip.read(start, count)]
        assert np.abs(np.array(levels) - 8 * np.arange(start, min(start + count, 30))).max() <= 3


def test_video_files_inside_tar_files_are_clips(tmp_path):
    write_mp4(tmp_path / "a.mp4", 5)
    write_gif(tmp_path / "b.gif")
    contents = {name: (tmp_path / name).read_bytes() for name in ("a.mp4", "b.gif")}
    write_tar(tmp_path / "clips.tar", contents | {"c.mp4": b"no video"})
    video, gif, bad = clip_sources(f"webdataset:{tmp_path}/clips.tar")
    assert (video.num_frames, gif.num_frames) == (5, 6)
    assert abs(colour(video.read(4)[0])[0] - 32) <= 3
    with pytest.raises(BadPicture, match=r"clips\.tar/c\.mp4 cannot be read"):
        bad.read()


def test_a_damaged_video_file_is_named(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (clip,) = clip_sources(tmp_path)
    with pytest.raises(BadPicture, match="a.mp4 cannot be read") as caught:
        clip.read()
    assert caught.value.reason == "damaged"


def test_without_pyav_video_files_are_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr("emu_tokenizers.pixels.videos.find_spec", lambda name: None)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'emu-tokens\[video\]'"):
        PictureData(None, str(tmp_path))
    with pytest.raises(ModuleNotFoundError):
        require_video_reader()


def test_bad_samples_are_counted_by_reason_and_stop_above_the_limit(tmp_path):
    for number in range(8):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "header.png").write_bytes(png(0)[:20] + b"\xff\xff" + png(0)[22:])  # its checksum does not fit
    (tmp_path / "cut.png").write_bytes(png(0)[:-30])
    (tmp_path / "text.png").write_text("no picture")
    sources = picture_sources(tmp_path)
    samples = Samples(len(sources), max_bad_share=0.3)
    kept = [source for source in sources if samples.read(source)]
    assert len(kept) == 8
    assert samples.bad == {"not a picture": 2, "damaged": 1}
    assert all(not samples.read(source) for source in set(sources) - set(kept))  # not counted twice
    assert sum(samples.bad.values()) == 3


def test_a_share_of_bad_samples_counts_from_200_on():
    sources = [Unreadable(number, bad=number < 20) for number in range(400)]
    samples = Samples(len(sources), max_bad_share=0.05)
    for source in sources[:380]:  # 20 of 200 are more than a share of .05, 20 of 400 are not
        samples.read(source)
        if len(samples._read) == 199:
            break
    assert samples.bad == {"damaged": 20}
    with pytest.raises(BadSamples, match=r"21 of 200 sources cannot be read \(\{.*\}\), more than max_bad_share=0\.05"):
        samples.read(Unreadable(400, bad=True))


def test_of_a_few_files_one_bad_one_does_not_stop_a_run_and_all_of_them_do():
    samples = Samples(3, max_bad_share=0.05)
    assert samples.read(Unreadable(0, bad=False)) and not samples.read(Unreadable(1, bad=True))
    samples = Samples(2, max_bad_share=0.05)
    samples.read(Unreadable(0, bad=True))
    with pytest.raises(BadSamples, match="none of 2 sources can be read"):
        samples.read(Unreadable(1, bad=True))


def test_crops_of_tars_and_gifs_train_together(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{number}.png": png(number) for number in range(3)})
    write_gif(tmp_path / "b.gif")
    data = PictureData(
        f"webdataset:{tmp_path}/a.tar", str(tmp_path / "b.gif"), size=16, images_per_step=2, clips_per_step=1, frames=4
    )
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 16, 16) and batch["video"].shape == (1, 4, 3, 16, 16)


def test_what_was_left_out_does_not_change_later_draws(tmp_path):
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_text("no picture")

    def data() -> PictureData:
        return PictureData(str(tmp_path), size=16, images_per_step=6, steps_per_epoch=6, max_bad_share=0.5)

    straight = [batch["image"] for batch in data().train_dataloader()]
    resumed = data().train_dataloader()
    resumed.load_state_dict({**resumed.state_dict(), "step": 4})  # this one meets the bad file later than the other did
    assert all((a == b["image"]).all() for a, b in zip(straight[4:], resumed, strict=True))


def test_a_folder_of_ones_own_comes_before_the_photographs_of_that_name(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert len(picture_sources("photographs")) == 2
    (tmp_path / "photographs").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photographs" / "mine.png")
    with caplog.at_level("WARNING"):
        assert [source.name for source in picture_sources("photographs")] == ["mine.png"]
    assert "working folder" in caplog.text


def test_a_tar_that_is_cut_or_has_a_giant_header_is_told_apart_from_what_is_none(tmp_path):
    member, header = tarfile.TarInfo("1.png"), tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, 1 << 24
    giant = member.tobuf() + header.tobuf() + bytes(1 << 24)
    member.size = 5000
    cut = member.tobuf() + bytes(600)
    for content, told in ((giant, "has a header of more than 262144 bytes"), (cut, "is damaged")):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.tar {told} after 1 members"):
            tar_members(str(tmp_path / "a.tar"))
