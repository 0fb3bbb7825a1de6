"""Data of tokenizer training: crops are a function of seed, step and place, ranks share a step, bad files are counted."""

import numpy as np
import pytest
import torch
from PIL import Image

from emu_tokenizers.pixels.sources import clip_sources, picture_files
from emu_tokenizers.training import pixel_loader
from emu_tokenizers.training.picture_data import PictureData
from emu_tokenizers.training.pixel_samples import BadSamples, crop


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for index in range(4):
        (tmp_path / "clips" / f"{index}").mkdir(parents=True)
        array = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        for frame in range(3):
            Image.fromarray(np.roll(array, frame, axis=1)).save(tmp_path / "clips" / f"{index}" / f"{frame:03d}.png")
    return tmp_path


def test_batches_hold_crops_of_pictures_and_clips(folder):
    data = PictureData(str(folder), str(folder / "clips"), size=16, images_per_step=3, clips_per_step=2, frames=5)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (3, 3, 16, 16)
    assert batch["video"].shape == (2, 5, 3, 16, 16)
    assert batch["image"].min() >= -1 and batch["image"].max() <= 1
    assert torch.equal(batch["video"][:, 2], batch["video"][:, 4])  # a clip of three frames repeats its last


def test_a_loader_continues_where_its_state_stands(folder):
    data = PictureData(str(folder), size=16, images_per_step=2, steps_per_epoch=5)
    straight = [batch["image"] for batch in data.train_dataloader()]
    loader = data.train_dataloader()
    loader.load_state_dict({**loader.state_dict(), "step": 3})
    rest = [batch["image"] for batch in loader]
    assert len(rest) == 2
    assert all(torch.equal(a, b) for a, b in zip(straight[3:], rest, strict=True))
    assert not torch.equal(straight[0], next(iter(loader))["image"])  # the next epoch has other crops


def test_a_step_sees_the_same_samples_on_any_number_of_ranks(folder, monkeypatch):
    data = PictureData(str(folder), str(folder / "clips"), size=16, images_per_step=4, clips_per_step=2, frames=3)
    whole = next(iter(data.train_dataloader()))
    monkeypatch.setattr(pixel_loader, "num_ranks", lambda: 2)
    shares = []
    for number in range(2):
        monkeypatch.setattr(pixel_loader, "rank", lambda number=number: number)
        shares.append(next(iter(data.train_dataloader())))
    for kind, samples in whole.items():
        assert torch.equal(torch.stack([share[kind] for share in shares], dim=1).flatten(0, 1), samples)
        assert not torch.equal(shares[0][kind], shares[1][kind])
    monkeypatch.setattr(pixel_loader, "num_ranks", lambda: 3)
    with pytest.raises(ValueError, match="4 samples of kind 'image' a step cannot be divided among 3 ranks"):
        next(iter(data.train_dataloader()))


def test_unreadable_files_are_left_out_and_counted(folder):
    (folder / "bad.png").write_text("no picture")
    data = PictureData(str(folder), size=16, images_per_step=8, steps_per_epoch=10, max_bad_share=0.5)
    for _ in data.train_dataloader():
        pass
    assert data.bad == {"not a picture": 1}


def test_too_many_unreadable_files_stop_the_run(folder):
    for index in range(300):
        (folder / f"bad{index}.png").write_text("no picture")
    data = PictureData(str(folder), size=16, images_per_step=8, max_bad_share=0.2)
    with pytest.raises(BadSamples, match=r"of 200 sources cannot be read .* more than max_bad_share=0\.2"):
        for _ in data.train_dataloader():
            pass


def test_a_crop_keeps_colours_and_never_leaves_the_picture():
    image = Image.new("RGB", (13, 40), (255, 0, 0))
    for seed in range(5):
        pixels = crop([image], 32, np.random.default_rng(seed))
        assert pixels.shape == (1, 3, 32, 32)
        assert (pixels[0, 0] == 1).all() and (pixels[0, 1:] == -1).all()


def test_clips_are_folders_of_frames_in_name_order(folder):
    clips = clip_sources(folder / "clips")
    assert [clip.num_frames for clip in clips] == [3, 3, 3, 3]


def test_the_bundled_photographs_are_found():
    pytest.importorskip("sklearn")
    assert len(picture_files("photographs")) == 2


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        PictureData(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no pictures"):
        PictureData(str(tmp_path))
    with pytest.raises(ValueError, match="images, videos or both"):
        PictureData(None)
