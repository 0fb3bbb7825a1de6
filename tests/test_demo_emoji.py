"""The pictures of `emu demo pictures`: what is held out, what documents are made of them, and how motions are judged."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from emu.data.tokenizing import open_source
from emu.demo.pictures import MovingPixels, StoreEmoji
from emu.demo.pictures.emoji import SHEET, TABLE, TONES, load_emoji, people_of, person_and_tone, toned_caption
from emu.demo.pictures.emoji_documents import motions, tone_changes
from emu.demo.pictures.motions import FRAMES, MOTIONS, clip_of, moves_as, undone
from emu.demo.pictures.tone_judge import ToneJudge
from emu.own_data import PictureStore
from emu_tokenizers.pixels.images import open_image, to_rgb


@pytest.fixture(scope="module")
def emoji():
    return load_emoji()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji") / "store"
    assert StoreEmoji(views=2, people=6, others=4).run(folder) == 0
    return PictureStore(folder)


def test_they_are_about_1500_different_pictures_in_five_megabytes(emoji):
    assert emoji.pictures.shape == (1500, 64, 64, 3) and len(set(emoji.captions)) == 1500
    assert len({picture.tobytes() for picture in emoji.pictures}) == 1500
    assert SHEET.stat().st_size + TABLE.stat().st_size < 5e6


def test_a_tenth_of_the_pairs_is_held_out_evenly_and_of_a_person_one_at_most(emoji):
    people = people_of(emoji.captions)
    assert len(people) == 178 and all(list(tones) == list(TONES) for tones in people.values())
    held_out = [person_and_tone(emoji.captions[row]) for row in emoji.held_out]
    assert len(held_out) == 89 and len({name for name, _ in held_out}) == 89
    assert (
        max(Counter(tone for _, tone in held_out).values()) - min(Counter(tone for _, tone in held_out).values()) <= 1
    )


def test_captions_name_person_and_tone_both_ways():
    assert person_and_tone(toned_caption("man, bald", "medium-dark")) == ("man, bald", "medium-dark")
    assert person_and_tone("cat") is None and person_and_tone("a, blue skin tone") is None


def test_fewer_pictures_are_the_first_people_and_others(emoji):
    few = load_emoji(people=2, others=1)
    assert few.captions == [*emoji.captions[:10], emoji.captions[890]]
    assert np.array_equal(few.pictures[10], emoji.pictures[890])


def test_no_held_out_picture_is_in_a_trained_change_of_tone(store):
    held_out = set(store.rows("held_out"))
    trained, asked = tone_changes(store, "train"), tone_changes(store, "held_out")
    names = [person_and_tone(caption) or ("", "") for caption in store.captions]
    assert not held_out & {row for change in trained for row in change}
    assert all(names[one][0] == names[other][0] and one != other for one, other in trained + asked)
    assert {row for _, row in asked} == held_out and not held_out & {row for row, _ in asked}


def test_each_picture_has_a_motion_that_it_is_not_trained_in(store):
    trained, asked = set(motions(store, "train")), set(motions(store, "held_out"))
    assert not trained & asked
    assert len(trained) == (len(MOTIONS) - 1) * len(store.rows("train"))
    assert {way for _, way in asked} == set(range(len(MOTIONS)))


def test_documents_hold_a_picture_words_and_the_other_picture(store):
    source = open_source(f"tone-changes:{store.folder}/train")
    records = list(source.records())
    assert len(records) == source.length == len(tone_changes(store, "train"))
    before, words, after = source.read(records[0])["items"]
    _, given, asked = records[0].content
    assert words["caption"] == store.captions[asked].rpartition(", ")[2]
    for item, row in ((before, given), (after, asked)):
        assert np.array_equal(np.asarray(to_rgb(open_image(item["image"]))), store.pictures[row])


def test_documents_of_clips_hold_the_caption_and_the_frames(store):
    source = open_source(f"motions:{store.folder}/held_out")
    record = next(source.records())
    words, clip = source.read(record)["items"]
    _, row, way = record.content
    assert words["caption"] == f"{store.captions[row]} {MOTIONS[way]}"
    frames = np.stack([np.asarray(to_rgb(open_image(frame))) for frame in clip["frames"]])
    assert np.array_equal(frames, clip_of(store.pictures[row], MOTIONS[way]))


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_motion_undone_is_one_part_of_the_picture_four_times(emoji, motion):
    clip = clip_of(emoji.pictures[900], motion)
    assert clip.shape == (FRAMES, 64, 64, 3)
    assert all(np.array_equal(frame, undone(clip, motion)[0]) for frame in undone(clip, motion))
    assert [bool(moves_as([clip], [other])[0]) for other in MOTIONS] == [other == motion for other in MOTIONS]


def test_noise_does_not_hide_a_motion(emoji):
    noise = np.random.default_rng(0)
    clips, ways = [], []
    for number in range(0, 1500, 50):
        ways.append(MOTIONS[number // 50 % len(MOTIONS)])
        clip = clip_of(emoji.pictures[number], ways[-1]) + noise.normal(0, 20, (FRAMES, 64, 64, 3))
        clips.append(clip.clip(0, 255).astype(np.uint8))
    assert moves_as(clips, ways).mean() > 0.95


def test_the_judge_counts_the_asked_picture_and_no_copy(store):
    judge, rows = ToneJudge(store), store.rows("held_out")
    real = np.asarray(store.pictures)[rows]
    assert judge.measure("drawn", real, rows) == {"drawn_is_nearest": 1.0, "drawn_tone_right": 1.0}
    small = np.stack([np.asarray(Image.fromarray(one).resize((32, 32)).resize((64, 64))) for one in real])
    assert judge.measure("drawn", small, rows)["drawn_is_nearest"] == 1.0
    baselines = judge.baselines("drawn", rows)
    assert baselines["drawn_is_nearest_copied"] == baselines["drawn_is_nearest_mean"] == 0.0


def test_the_vision_tokenizer_sees_crops_and_frames_of_clips(store):
    data = MovingPixels(str(store.folder), clip_share=1.0)
    frames = [data.sample("image", np.random.default_rng(seed)) for seed in range(20)]
    assert all(frame.shape == (3, 64, 64) for frame in frames)
    strips = [(frame[:, :8], frame[:, :, :16], frame[:, :, -16:]) for frame in frames]
    assert [any(bool((way == 1).all()) for way in ways) for ways in zip(*strips, strict=True)] == [True, True, True]
    with pytest.raises(ValueError, match="clip_share is 2"):
        MovingPixels(str(store.folder), clip_share=2)


def test_a_store_of_nobody_is_refused():
    with pytest.raises(ValueError, match="people is 1"):
        StoreEmoji(people=1)


def test_the_table_says_what_the_script_wrote():
    table = json.loads(TABLE.read_text("utf-8"))
    assert {"name", "tone", "held_out"} == set(table[0]) and {"name"} == set(table[-1])
