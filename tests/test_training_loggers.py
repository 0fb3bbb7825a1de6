"""The loggers that `--loggers` names, with their own packages, where these are installed: curves, pictures, clips and texts."""

import json

import pytest
from PIL import Image

from tests.test_training_samples import recipe, with_samples  # noqa: F401 (a fixture)
from tests.training_toys import run

DRAWN = {"images": ["a <red> circle"], "videos": ["a ball"]}
SIZES = {"options": {"size": [8, 8]}, "video_options": {"size": [8, 8], "frames": 4, "fps": 4}, "max_new_tokens": 4}


@pytest.fixture
def sampled(recipe, tmp_path):  # noqa: F811
    """A recipe of four steps that draws a picture, a clip and a description at every other one."""
    return with_samples(recipe, every_n_steps=2, describe=[str(tmp_path / "grey.png")], **DRAWN, **SIZES)


@pytest.mark.slow
def test_tensorboard_shows_the_curves_and_every_kind_of_sample(sampled, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(sampled, "--loggers", "[tensorboard]")
    board = accumulators.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    for name in ("image-0", "video-0", "text-0"):
        assert [event.step for event in board.Images(f"samples/{name}")] == [0, 2, 4]
    assert board.Images("samples/video-0")[0].encoded_image_string.startswith(b"GIF")
    assert board.Images("samples/image-0")[0].encoded_image_string.startswith(b"\x89PNG")
    (text,) = board.Tensors("samples/image-0/text_summary")[0].tensor_proto.string_val
    assert "red" in text.decode()


@pytest.mark.slow
def test_weights_and_biases_keeps_the_curves_and_every_kind_of_sample_without_a_network(sampled, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(sampled, "--loggers", "[wandb]")
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert summary["trainer/global_step"] == 4 and summary["train/loss"] > 0
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    media = sorted(file.relative_to(folder / "files" / "media") for file in (folder / "files" / "media").rglob("*.*"))
    names = [file.as_posix() for file in media]
    for kind, sample, ending in (
        ("images", "image-0", "png"),
        ("videos", "video-0", "gif"),
        ("images", "text-0", "png"),
    ):
        assert (
            len([name for name in names if name.startswith(f"{kind}/samples/{sample}") and name.endswith(ending)]) == 3
        )
    clip = next(file for file in media if file.suffix == ".gif")
    assert Image.open(folder / "files" / "media" / clip).n_frames == 4
    (table, *_) = (file for file in media if file.name.endswith(".table.json"))
    content = json.loads((folder / "files" / "media" / table).read_text())
    assert content["columns"] == ["name", "prompt", "text"] and content["data"][0][0] == "text-0"
