"""Tokenizers that learn from streams: pictures and clips in tar files, tables and folders that are never listed."""

import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from emu_tokenizers.pixels.streams import TarStream, clip_stream, picture_stream
from emu_tokenizers.training import pixel_loader
from emu_tokenizers.training.picture_data import PictureData
from emu_tokenizers.training.pixel_samples import BadSamples
from emu_tokenizers.training.stream_windows import StreamPosition, StreamWindows

SHADES = 24


def png(shade):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (shade * 10, 40, 200)).save(content, "PNG")
    return content.getvalue()


def gif(shade):
    content = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (shade * 10, 50 * number, 0)) for number in range(3)]
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    return content.getvalue()


def write_tar(file, contents):
    with tarfile.open(file, "w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three tar files of eight pictures of one shade each, texts beside them, and one of clips."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        pictures = {f"{shade}.png": png(shade) for shade in range(number, SHADES, 3)}
        write_tar(folder / f"pictures-{number}.tar", {**pictures, "note.txt": b"a note"})
    write_tar(folder / "clips.tar", {f"{shade}.gif": gif(shade) for shade in range(4)})
    return folder


def data_of(shards, **options):
    settings = {"size": 8, "images_per_step": 4, "steps_per_epoch": 12, "shuffle": 12} | options
    return PictureData(f"webdataset:{shards}/pictures-*.tar", streaming=True, **settings)


def shades_of(batch):
    return ((batch["image"][:, 0, 0, 0] + 1) * 127.5).round().div(10).int().tolist()


def test_a_pass_shows_each_picture_once_in_an_order_of_its_own(shards):
    shades = [shades_of(batch) for batch in data_of(shards).train_dataloader()]
    first, second = sum(shades[:6], []), sum(shades[6:], [])
    assert sorted(first) == sorted(second) == list(range(SHADES))
    assert first != second and first != sorted(first)
    again = [shades_of(batch) for batch in data_of(shards).train_dataloader()]
    other = [shades_of(batch) for batch in data_of(shards, seed=1).train_dataloader()]
    assert again == shades and other != shades


@pytest.mark.parametrize("step", [1, 3, 8, 12, 17])
def test_a_loader_goes_on_where_its_state_stands_and_reads_nothing_of_before(shards, step, monkeypatch):
    def loader():
        return data_of(shards, steps_per_epoch=20).train_dataloader()

    straight, stopped = loader(), loader()
    wanted = list(straight)[step:]
    running = iter(stopped)
    for _ in range(step):
        next(running)
    state = json.loads(json.dumps(stopped.state_dict()))
    read, original = [], TarStream.sources

    def sources(self, part, first=0):
        read.append(first)
        return original(self, part, first)

    monkeypatch.setattr(TarStream, "sources", sources)
    resumed = loader()
    resumed.load_state_dict(state)
    found = list(resumed)
    assert len(found) == len(wanted)
    assert all(torch.equal(ours["image"], theirs["image"]) for ours, theirs in zip(found, wanted, strict=True))
    windows = 20 * 4 // 12 - max(0, step * 4 - 1) // 12 + 1
    assert len(read) <= windows * 3
    assert read[0] == state["streams"]["image"][3]


def test_a_step_sees_the_same_samples_on_any_number_of_ranks(shards, monkeypatch):
    whole = list(data_of(shards).train_dataloader())[4]
    monkeypatch.setattr(pixel_loader, "num_ranks", lambda: 2)
    shares = []
    for number in range(2):
        monkeypatch.setattr(pixel_loader, "rank", lambda number=number: number)
        shares.append(list(data_of(shards).train_dataloader())[4]["image"])
    assert torch.equal(torch.stack(shares, dim=1).flatten(0, 1), whole["image"])
    assert not set(shades_of({"image": shares[0]})) & set(shades_of({"image": shares[1]}))


def test_clips_come_beside_pictures(shards):
    data = data_of(shards, videos=f"webdataset:{shards}/clips.tar", clips_per_step=2, frames=4)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 8, 8) and batch["video"].shape == (2, 4, 3, 8, 8)
    assert torch.equal(batch["video"][:, 2], batch["video"][:, 3]) and "1 parts of clips" in repr(data)


def test_validation_has_an_order_of_its_own_and_leaves_the_run_alone(shards):
    data = data_of(shards)
    wanted = [shades_of(batch) for batch in data_of(shards).train_dataloader()]
    held, found = data.val_dataloader(), []
    for batch in data.train_dataloader():
        found.append(shades_of(batch))
        list(held)
    assert found == wanted


def test_tables_and_folders_are_streamed_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"photo": [{"bytes": png(shade), "path": None} for shade in range(6)]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"photo": datasets.Image()}))
    for number in range(2):
        table.shard(2, number).to_parquet(tmp_path / f"{number}.parquet")
        (tmp_path / "photos" / str(number)).mkdir(parents=True)
        for shade in range(3 * number, 3 * number + 3):
            (tmp_path / "photos" / str(number) / f"{shade}.png").write_bytes(png(shade))
    stream = picture_stream(f"dataset:parquet,data_files={tmp_path}/*.parquet", column="photo")
    folders = picture_stream(tmp_path / "photos")
    for parts, one in (([0, 1], stream), ([1, 2], folders)):
        found = [[source.read()[0].getpixel((0, 0))[0] // 10 for source in one.sources(part)] for part in parts]
        assert found == [[0, 1, 2], [3, 4, 5]]
        assert [source.read()[0].getpixel((0, 0))[0] // 10 for source in one.sources(parts[1], 2)] == [5]
    with pytest.raises(ValueError, match="no column 'image'; it has"):
        picture_stream(f"dataset:parquet,data_files={tmp_path}/*.parquet")


def test_links_that_lead_to_themselves_are_no_pictures(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "1.png").write_bytes(png(1))
    (source,) = picture_stream(tmp_path).sources(0)
    assert source.name == "1.png"


def test_clips_of_folders_are_animations_and_folders_of_frames(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "one.gif").write_bytes(gif(1))
    for number in range(2):
        (tmp_path / "frames" / f"{number}.png").write_bytes(png(number))
    stream = clip_stream(tmp_path)
    assert [[source.num_frames for source in stream.sources(part)] for part in range(2)] == [[3], [2]]


def test_pictures_that_cannot_be_read_are_counted_and_too_many_of_them_stop_the_run(shards, tmp_path):
    write_tar(tmp_path / "pictures-0.tar", {f"{shade}.png": png(shade) for shade in range(6)} | {"bad.png": b"nothing"})
    data = data_of(tmp_path, max_bad_share=0.5)
    assert len(list(data.train_dataloader())) == 12 and data.bad["not a picture"] >= 2
    names = {f"{number}.png": b"nothing" if number % 3 else png(number % 20) for number in range(900)}
    write_tar(tmp_path / "pictures-1.tar", names)
    with pytest.raises(BadSamples, match=r"more than max_bad_share=0\.05"):
        list(data_of(tmp_path, steps_per_epoch=200).train_dataloader())


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "pictures-0.tar", {"note.txt": b"a note"})
    for name in (f"webdataset:{tmp_path}/pictures-*.tar", str(tmp_path / "empty")):
        data = PictureData(name, streaming=True, size=8)
        with pytest.raises(FileNotFoundError, match="there are no pictures or clips in"):
            next(iter(data.train_dataloader()))
    with pytest.raises(FileNotFoundError, match="no tar files"):
        PictureData(f"webdataset:{tmp_path}/none-*.tar", streaming=True)
    with pytest.raises(ValueError, match="shuffle is 0"):
        PictureData(streaming=True, shuffle=0)
    data = data_of(tmp_path)
    state = data.train_dataloader().state_dict()
    write_tar(tmp_path / "pictures-1.tar", {"1.png": png(1)})
    with pytest.raises(ValueError, match="position is one in other data: sources was"):
        data_of(tmp_path).train_dataloader().load_state_dict(state)


class Endless:
    """A stream of one part that never ends."""

    parts = ("numbers",)

    def sources(self, part, first=0):
        while True:
            yield np.full(1000, first)
            first += 1


def test_memory_holds_one_window():
    windows = StreamWindows(Endless(), size=100, seed=0)
    windows.sample(0)
    tracemalloc.start()
    for number in range(0, 10_000, 50):
        windows.sample(number)
    assert tracemalloc.get_traced_memory()[1] < 3 * 100 * 8000
    tracemalloc.stop()
    assert windows.position == StreamPosition(99, 0, 0, 9900)
