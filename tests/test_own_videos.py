"""`emu fit --config own-videos`: from a folder of captioned clips to a model and a report, in seconds where steps are few."""

import hashlib
import json

import numpy as np
import pytest

from emu import Emu
from emu.cli.fit import fit
from emu.cli.main import main
from emu.data.shards import TokenShards
from emu.documents import Video
from emu.media import gif_bytes, mp4_bytes
from emu.own_data import SplitClips
from tests.own_toys import COLOURS, content, drawn, killed_over, started

FEW = (
    "--vision.trainer.max_steps",
    4,
    "--vision.model.quantizer_warmup_steps",
    1,
    "--vision.trainer.val_check_interval",
    2,
)
FEW += ("--vision.model.config.base_channels", 4, "--vision.data.validation_steps", 1)
FEW += ("--transformer.trainer.max_steps", 4, "--transformer.trainer.val_check_interval", 2, "--report.count", 2)


def write_clips(folder):
    """Discs that move to the left or right: GIFs of two sizes and two rates, captions beside them."""
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        for way, step in (("left", -1), ("right", 1)):
            size, fps = ((16, 8), (24, 4))[number % 2]
            frames = [drawn(colour, "disc", size, step * (time - 3)) for time in range(8)]
            (folder / f"{colour}-{way}.gif").write_bytes(gif_bytes(frames, fps))
            (folder / f"{colour}-{way}.txt").write_text(f"a {colour} disc moving {way}")
    return folder


def words(run):
    found = ["--config", "own-videos", "--data.source", str(run.parent / "clips"), "--budget", "1s"]
    found += ["--data.options", "{clip_frames: 8}"]
    return [*found, "--trainer.default_root_dir", str(run), *map(str, FEW)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_clips(folder / "clips")
    assert fit(words(folder / "run")) == 0
    return folder / "run"


@pytest.mark.slow
def test_eight_clips_of_two_sizes_and_rates_become_a_model_and_a_report(done):
    values = json.loads((done / "plan.json").read_text())["values"]
    assert values["frames"] == 8 and values["size"] == 16
    assert [path.parent.name for path in done.rglob("emu.json")] == ["model"]
    metrics = json.loads((done / "10-report" / "metrics.json").read_text())
    assert metrics["held_out"] >= 1 and metrics["held_out_bits_per_pixel"] > 0
    page = (done / "10-report" / "report.html").read_text()
    for title in ("Text to video", "Continuation", "Reconstructions", "Video to text", "Learning: vision"):
        assert title in page
    emu = Emu.from_pretrained(done / "model")
    assert set(emu.trained.tasks) >= {"text_to_video", "video_continuation", "video_to_text"}
    assert set(emu.trained.rates) == {4, 8}


def test_clips_keep_their_rate_and_are_divided_alike_in_any_order(tmp_path):
    folder = write_clips(tmp_path / "clips")
    for name in ("first", "second"):
        SplitClips(str(folder), 16, 8, 0.25).run(tmp_path / name)
        for file in sorted(folder.iterdir()):  # the same clips under other names, in another order
            digest = hashlib.sha256(file.stem.encode()).hexdigest()[:8]
            file.rename(file.with_name(f"{digest}{file.suffix}"))
    lines = [(tmp_path / name / "held_out.draw.jsonl").read_text() for name in ("first", "second")]
    assert lines[0] == lines[1] and len(lines[0].splitlines()) == 2
    (caption, clip), *_ = [json.loads(line)["items"] for line in lines[0].splitlines()]
    frames = Video.open([tmp_path / "first" / name for name in clip["frames"]]).frames
    assert frames.shape == (8, 16, 16, 3) and clip["fps"] in (4, 8) and caption["caption"].startswith("a ")
    assert not np.array_equal(frames[0], frames[-1])


def test_video_files_with_captions_beside_them_are_clips_and_documents(tmp_path, shelf):
    pytest.importorskip("av")
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        frames = [drawn(colour, "disc", 32, time - 4) for time in range(12)]
        (folder / f"{number}.mp4").write_bytes(mp4_bytes(frames, (8, 4)[number % 2]))
        (folder / f"{number}.txt").write_text(f"a {colour} disc")
    (folder / "cut.mp4").write_bytes((folder / "0.mp4").read_bytes()[:200])
    (folder / "cut.txt").write_text("a clip")
    assert SplitClips(str(folder), 16, 8, 0.25).run(tmp_path / "split") == 1
    lines = (tmp_path / "split" / "train.draw.jsonl").read_text().splitlines()
    assert len(lines) == 3 and {json.loads(line)["items"][1]["fps"] for line in lines} == {4, 8}
    split = json.loads((tmp_path / "split" / "split.json").read_text())
    assert sum(split["left_out"].values()) == 1 and "cut.mp4" in str(split["named"])
    words = ["tokenize", folder, "--tokenizer", shelf / "tokenizer", "--output", tmp_path / "out", "--size", "8,8"]
    assert main([*map(str, words), "--clip-frames", "8"]) == 1
    assert len(TokenShards(tmp_path / "out")) == 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_twelve_kills_spread_over_the_job_change_no_byte(done, tmp_path, seed):
    run = started(done.parent, tmp_path, "clips")
    assert killed_over(words(run), run, seed) >= 10
    assert fit(words(run)) == 0
    assert content(run) == content(done)
