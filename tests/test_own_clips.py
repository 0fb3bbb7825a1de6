"""Clips of one's own: what is planned for them, and what their model is measured against; and the clips that jobs are measured on."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.own_videos import RATES, SPEED, Scene, check, read_scene, scenes, webp_bytes, write_clips
from emu.media import gif_bytes
from emu.own_data import ClipPlan, SplitClips
from emu.own_data.clip_measures import StoredClips, measure_continued, measure_drawn, measure_told
from emu.own_data.clip_report import TASKS, task_table
from emu.own_data.clip_store import numbered_clip
from emu.own_data.speed_probe import Speed
from tests.own_toys import COLOURS, drawn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Discs that move up to 14 pixels: GIF and WebP files of two sizes and rates, each caption beside them twice."""
    folder = tmp_path_factory.mktemp("clips")
    for number, colour in enumerate([*COLOURS, *COLOURS]):
        size, fps = ((16, 8), (24, 4))[number % 2]
        for way, step in (("left", -1), ("right", 1)):
            frames = [drawn(colour, "disc", size, step * (time - 3) + number // 4) for time in range(8)]
            data, ending = (gif_bytes(frames, fps), "gif") if step > 0 else (webp_bytes(frames, fps), "webp")
            (folder / f"{number}-{way}.{ending}").write_bytes(data)
            (folder / f"{number}-{way}.txt").write_text(f"a {colour} disc moves {way}")
    return folder


@pytest.fixture(scope="module")
def stored(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("split") / "clips"
    SplitClips(str(folder), 16, 8, 0.25, views=2).run(target)
    return StoredClips(target, 3)


def frames_of(clips):
    return np.stack([clip.frames for clip in clips])


class Parrot:
    """Answers with the very clips and captions that are held out."""

    def __init__(self, stored):
        self.answers = stored.asked
        self.tokenizer = SimpleNamespace(text=SimpleNamespace(encode=str.split))
        self.given = []

    def generate_videos(self, prompts, *, first_frames, fps, **options):
        self.given.append(first_frames)
        found = [clip for clip in self.answers[0] if clip.fps == fps]
        assert len(found) == len(prompts) and options["frames"] == 8
        return [SimpleNamespace(frames=[Image.fromarray(frame) for frame in clip.frames]) for clip in found]

    def generate_text(self, documents, max_new_tokens):
        return list(self.answers[1])


def test_what_becomes_of_sizes_lengths_and_rates_is_said(folder, monkeypatch):
    monkeypatch.setattr("emu.own_data.picture_plan.measure_speed", lambda *_: Speed(0.1, 0.001, 0.1))
    values, reasons = ClipPlan(str(folder)).make()
    assert values["frames"] == 8 and values["size"] == 16 and values["vision"]["temporal_factor"] == 4
    told = "\n".join(reasons)
    for part in (
        "brought to 16x16",
        "the clips have 16x16, 24x24",
        "keeps its rate (4, 8 frames a second)",
        "8 frames, 4 to a group",
    ):
        assert part in told, part


def test_small_frames_get_finer_codes_than_large_ones(folder):
    plans = [ClipPlan(str(folder), size=size) for size in (32, 64)]
    factors = [plan.shape(plan.look())[0]["vision"]["spatial_factor"] for plan in plans]
    assert factors == [4, 8]


def test_a_view_is_the_same_in_all_frames_and_is_mirrored_only_where_no_side_is_named():
    still = np.repeat(np.asarray(drawn("red", "disc", 16, 3))[None], 8, axis=0)
    for number in range(1, 12):
        view, told = numbered_clip(still, "a red disc moves left", "key", number)
        assert view.shape == still.shape and (view == view[:1]).all() and told == "cropped"
    told = {numbered_clip(still, "a red disc moves up", "key", number)[1] for number in range(1, 12)}
    assert told == {"mirrored", "cropped", "cropped, mirrored"}
    mirrored, _ = numbered_clip(still, "a red disc moves up", "key", 1)
    assert np.array_equal(mirrored[:, :, ::-1], still)


def test_views_are_trained_on_and_never_measured_on(stored):
    lines = {
        name: [json.loads(line)["items"] for line in (stored.folder / f"{name}.draw.jsonl").read_text().splitlines()]
        for name in ("train", "held_out")
    }
    count = len(stored.documents("train"))
    assert len(lines["train"]) == 2 * count and len(lines["held_out"]) == len(stored.documents("held_out"))
    captions = [caption["caption"] for caption, _ in lines["train"]]
    for caption, view in zip(captions[:count], captions[count:], strict=True):
        assert view == f"cropped: {caption}"
    assert all(stored.read(clip).frames.shape == (8, 16, 16, 3) for _, clip in lines["train"][count - 1 : count + 1])


def test_a_clip_drawn_as_it_was_asked_for_is_at_the_goal(stored):
    asked = frames_of(stored.asked[0])
    found = measure_drawn(Parrot(stored), stored, asked, 0)
    assert found.metrics["asked_is_nearest_of_all"] == 1 and found.metrics["distance_to_asked"] == 0
    assert found.metrics["distance_to_asked_mean_clip"] > 0 and found.metrics["distance_to_asked_nearest_caption"] > 0
    ours, real = (
        found.metrics[name] for name in ("distance_to_nearest_training", "distance_of_real_to_nearest_training")
    )
    assert ours == real > 0
    assert np.array_equal(found.pictures["nearest"], found.pictures["nearest_to_asked"])
    train = frames_of([stored.read(clip) for _, clip in stored.train])
    assert all((train == near).all(axis=(1, 2, 3, 4)).any() for near in found.pictures["nearest"])


def test_a_continuation_is_compared_by_what_was_not_given(stored):
    emu, asked = Parrot(stored), frames_of(stored.asked[0])
    found = measure_continued(emu, stored, asked, 0).metrics
    assert all(len(clip) == 4 for given in emu.given for clip in given)
    assert found["continued_distance"] == found["continued_distance_after_codes"] == 0
    assert found["continued_distance_last_frame"] > 0


def test_descriptions_stand_beside_two_that_need_no_model(stored):
    found = measure_told(Parrot(stored), stored).metrics
    assert found["described_exactly"] == found["described_words"] == 1
    assert found["described_exactly_commonest"] <= found["described_words_commonest"] < 1
    assert 0 < found["described_words_nearest_clip"] <= 1


def test_each_task_has_a_row_with_its_goal_and_its_baselines(stored):
    emu, asked = Parrot(stored), frames_of(stored.asked[0])
    metrics = measure_drawn(emu, stored, asked, 0).metrics | measure_continued(emu, stored, asked, 0).metrics
    table = task_table(metrics | measure_told(emu, stored).metrics)
    assert table.count("<tr>") == len(TASKS) + 1
    for words in (
        "mean clip",
        "last given frame, repeated",
        "commonest caption",
        "training clip with the nearest caption",
    ):
        assert words in table


def test_the_reader_is_right_of_every_clip_that_is_made(tmp_path):
    write_clips(tmp_path / "clips", 12)
    assert check(tmp_path / "clips") == {"clips": 12, "direction": 1, "colour": 1, "rate": 1}


def test_what_stands_still_or_is_noise_moves_nowhere():
    frames = np.stack(Scene("red", "square", "left", 8).draw((32, 32), random.Random(0)))
    moving = read_scene(frames, 8)
    assert moving.way == "left" and moving.speed == pytest.approx(SPEED, rel=0.02)
    assert read_scene(frames[::-1], 8).way == "right"
    assert read_scene(np.repeat(frames[:1], 8, axis=0), 8).way == "none"
    assert read_scene(np.full_like(frames, 200), 8).way == "none"
    noise = np.random.default_rng(0).integers(0, 256, frames.shape, np.uint8)
    assert read_scene(noise, 8).way == "none"


def test_no_clip_shows_what_is_asked_for_and_each_two_parts_of_it_are_shown():
    shown, asked = ({(one.colour, one.shape, one.way) for one in scenes(part)} for part in (False, True))
    assert not shown & asked and len(scenes(True)) == 16 * len(RATES)
    for places in ((0, 1), (0, 2), (1, 2)):
        pairs = [{tuple(one[place] for place in places) for one in part} for part in (asked, shown)]
        assert pairs[0] <= pairs[1]
