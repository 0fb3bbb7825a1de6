"""One's own pictures: which are the same, which are held out, how they are shown, and what is planned for how many of them."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from emu.data.tokenizing import SourceOptions, open_source
from emu.own_data import PicturePlan, PictureStore, SplitPictures, near_duplicates
from emu.own_data.near_duplicates import groups_of, small_hash
from emu.own_data.picture_measures import distances, nearest_caption, small
from emu.own_data.picture_plan import BANDS, Facts, band_of, pace, shape, spread
from emu.own_data.picture_store import divide
from emu.own_data.picture_views import may_mirror, numbered_view
from emu.own_data.speed_probe import Speed
from tests.own_toys import drawn, noise, write_pictures


def saved_again(picture, quality=90):
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "jpeg", quality=quality)
    return np.asarray(Image.open(written))


def test_a_picture_saved_again_is_the_same_and_another_colour_is_not():
    pictures = [noise(seed) for seed in range(20)]
    pictures += [saved_again(picture) for picture in pictures[:5]]
    pictures += [np.asarray(drawn("red", "disc")), np.asarray(drawn("yellow", "disc"))]
    groups = groups_of(np.stack([small_hash(picture) for picture in pictures]))
    assert groups[:5].tolist() == groups[20:25].tolist()
    assert len(set(groups.tolist())) == 22


def test_groups_do_not_depend_on_the_order():
    hashes = np.stack([small_hash(noise(seed // 2)) for seed in range(30)])
    order = np.random.default_rng(0).permutation(30)
    first, second = groups_of(hashes), groups_of(hashes[order])
    assert all((first[order[i]] == first[order[j]]) == (second[i] == second[j]) for i in range(30) for j in range(30))


@pytest.mark.parametrize("block", [7, 64])
def test_groups_are_those_that_comparing_every_pair_gives(monkeypatch, block):
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    random = np.random.default_rng(block)
    some = random.integers(0, 256, (12, 192))[random.integers(0, 12, 60)] + random.integers(-6, 7, (60, 192))
    chain = np.full((40, 192), 2) * np.arange(40)[random.permutation(40), None]  # each near the next alone
    hashes = np.clip(np.concatenate([some, chain, chain[:3]]), 0, 255).astype(np.uint8)
    near = ((hashes[:, None].astype(int) - hashes) ** 2).mean(-1) <= near_duplicates.NEAR**2
    while not np.array_equal(near, more := near @ near):
        near = more
    groups = groups_of(hashes)
    assert np.array_equal(groups[:, None] == groups, near) and len(set(groups[60:])) == 1 < len(set(groups))


def test_groups_are_not_divided_and_keys_alone_decide():
    keys = [f"{number:03d}" for number in range(40)]
    groups = np.arange(40) // 4
    train, held_out = divide(keys, groups, 0.2, 0)
    assert sorted(train + held_out) == list(range(40)) and len(held_out) == 8
    assert not {groups[place] for place in train} & {groups[place] for place in held_out}
    backwards = divide(keys[::-1], groups[::-1], 0.2, 0)
    assert {keys[place] for place in held_out} == {keys[::-1][place] for place in backwards[1]}
    assert divide(keys[:2], np.arange(2), 0.01, 0)[1] in ([0], [1])


def split(tmp_path, name="pictures", **options):
    SplitPictures(str(tmp_path / name), 32, **options).run(tmp_path / f"{name}-split")
    return PictureStore(tmp_path / f"{name}-split")


def held_out(store):
    return {(store.captions[row], store.pictures[row].tobytes()) for row in store.rows("held_out")}


def test_the_split_knows_neither_names_nor_order_and_leaves_copies_and_damage_out(tmp_path, capsys):
    write_pictures(tmp_path / "pictures", 24)
    lines = [json.loads(line) for line in (tmp_path / "pictures" / "metadata.jsonl").read_text().splitlines()]
    other = tmp_path / "other"
    other.mkdir()
    with (other / "metadata.jsonl").open("w") as file:
        for number, line in enumerate([*reversed(lines), lines[3]]):
            shutil.copy(tmp_path / "pictures" / line["file_name"], other / f"x{number}.png")
            file.write(json.dumps({**line, "file_name": f"x{number}.png"}) + "\n")
        (other / "bad.png").write_bytes(b"not a picture")
        file.write(json.dumps({"file_name": "bad.png", "text": "bad"}) + "\n")
    first = split(tmp_path, views=3)
    assert SplitPictures(str(other), 32, views=3).run(tmp_path / "other-split") == 1
    assert "left out: bad.png" in capsys.readouterr().err
    second = PictureStore(tmp_path / "other-split")
    assert held_out(first) == held_out(second) and len(second.rows("train")) == len(first.rows("train"))
    assert second.split["left_out"]["duplicate"] == 1 and sum(second.split["left_out"].values()) == 2
    assert [[line[:7] for line in lines] for lines in second.split["named"].values()] == [["bad.png"]]
    documents, others = ([store.read(one) for one in store.records()] for store in map(training, (first, second)))
    assert documents == others  # their crops too, and their order
    again = split(tmp_path, views=3, seed=1)
    assert numbered_view(again, 0, 2)[0].tobytes() != numbered_view(first, 0, 2)[0].tobytes()


def training(store):
    return open_source(f"own-pictures:{store.folder}/train")


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pictures_are_refused(tmp_path, count):
    folder = write_pictures(tmp_path / "pictures", count)
    (folder / "other.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="captioned pictures"):
        SplitPictures(str(folder), 32).run(tmp_path / "split")
    assert not (tmp_path / "split").exists()


@pytest.mark.parametrize(
    "caption", ["a man facing left", "Left arrow", "clockwise arrows", "leftwards hand", "the west"]
)
def test_captions_of_left_and_right_are_not_mirrored(caption):
    assert not may_mirror(caption) and may_mirror("a bright light") and may_mirror("what is left_over")


def test_views_are_the_picture_its_mirror_image_and_crops_the_same_each_time(tmp_path):
    write_pictures(tmp_path / "pictures", 24)
    store = split(tmp_path, views=3)
    row = store.rows("train")[0]
    (plain, nothing), (mirrored, told), (crop, cropped) = (numbered_view(store, row, number) for number in range(3))
    assert np.array_equal(plain, store.pictures[row]) and nothing == ""
    assert np.array_equal(mirrored, store.pictures[row][:, ::-1]) and told == "mirrored"
    assert np.array_equal(crop, numbered_view(store, row, 2)[0]) and cropped in ("cropped", "cropped, mirrored")
    source = open_source(f"own-pictures:{store.folder}/train", SourceOptions(order="image,caption"))
    records = list(source.records())
    assert len(records) == source.length == 3 * len(store.rows("train"))
    image, caption = source.read(records[0])["items"]
    assert image["weight"] < 1 < caption["weight"] and caption["text"] == store.captions[row]
    drawn = [store.read(record)["items"][0]["caption"] for store in [training(store)] for record in store.records()]
    plain = [store.captions[row] for row in store.rows("train")]
    assert (
        drawn[: len(plain)] == plain and drawn[len(plain)] == f"mirrored: {plain[0]}"
    )  # what is asked for is drawn as it is
    assert len(list(open_source(f"own-pictures:{store.folder}/held_out").records())) == len(store.rows("held_out"))


def facts(pictures, side=64):
    return Facts(pictures, side, 40, min(2000, 3 * pictures))


def test_more_pictures_never_make_a_smaller_model_nor_more_dropout():
    bands = [band_of(pictures) for pictures in (12, 100, 101, 900, 3600, 20_000, 100_000, 10**7)]
    for before, after in zip(bands, bands[1:], strict=False):
        assert before.hidden <= after.hidden and before.layers <= after.layers and before.codebook <= after.codebook
        assert before.dropout >= after.dropout and before.views >= after.views
    assert all(band.hidden % (2 * band.heads) == 0 for band in BANDS)


def test_3600_pictures_of_64_pixels_take_at_most_three_tenths_of_a_bit_a_pixel_and_512_codes():
    values, _ = shape(facts(3600), None, 0.1)
    assert values["codebook_size"] >= 512
    assert np.log2(values["codebook_size"]) / values["vision"]["spatial_factor"] ** 2 <= 0.3


@pytest.mark.parametrize("pictures", [12, 1000, 3600, 100_000])
def test_a_larger_budget_never_gives_fewer_steps(pictures):
    values, _ = shape(facts(pictures), None, 0.1)
    speed = Speed(0.15, 0.002, 0.2)
    steps = [pace(facts(pictures), values, speed, seconds)[0] for seconds in (20, 60, 600, 1800, 7200, 10**6)]
    for name in ("vision_steps", "transformer_steps", "views"):
        counts = [one[name] for one in steps]
        assert counts == sorted(counts) and counts[0] >= (1 if name == "views" else 60)
    assert steps[3]["vision_steps"] * 0.15 + steps[3]["transformer_steps"] * 0.2 <= 1800


@pytest.mark.parametrize("side", [10, 24, 64, 500])
def test_every_choice_has_a_reason(side):
    values, reasons = shape(facts(3600, side), None, 0.1)
    more = pace(facts(3600, side), values, Speed(0.1, 0.001, 0.1), 600)[1]
    told = " ".join([*reasons, *more])
    assert values["size"] % values["vision"]["spatial_factor"] == 0 and 16 <= values["size"] <= 64
    for number in (values["size"], values["codebook_size"], values["transformer"]["hidden_size"]):
        assert str(number) in told


def test_a_budget_that_is_too_short_is_told_with_the_time_that_it_takes():
    values, _ = shape(facts(100_000), None, 0.1)
    for seconds, too_short in ((240, True), (3600, False)):
        reasons = pace(facts(100_000), values, Speed(0.3, 0.004, 1.5), seconds)[1]
        assert ("this takes about 20 minutes, longer than the budget" in reasons[-1]) == too_short


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "--data.source"),
        ({"source": "x", "budget": "soon"}, "budget is 'soon'"),
        ({"source": "x", "budget": "0min"}, "budget is '0min'"),
        ({"source": "x", "size": 50}, "size is 50"),
        ({"source": "x", "held_out": 1.0}, "held_out is 1.0"),
    ],
)
def test_what_cannot_be_planned_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        PicturePlan(**options)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100, 1000])
def test_what_is_looked_at_is_spread_over_all(count):
    kept, found = spread(iter(range(count)), 8)
    assert found == count and len(kept) <= 8 and len(kept) >= min(count, 4)
    assert kept == list(range(0, count, kept[1] if len(kept) > 1 else max(1, count)))


def test_words_of_captions_that_were_not_looked_at_are_expected(tmp_path, monkeypatch):
    for row in range(16):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{row}.png")
        (tmp_path / f"{row}.txt").write_text(f"one{row} two{row}")
    plan = PicturePlan(str(tmp_path))
    assert plan.look().words == 32
    monkeypatch.setattr("emu.own_data.picture_plan.LOOKED_AT", 4)
    assert plan.look().words == 16


def test_a_copy_of_a_training_picture_is_not_the_nearest_to_what_was_asked_for():
    pictures = np.stack([np.asarray(drawn(colour, "disc")) for colour in ("red", "green", "blue")])
    near = distances(small(pictures), small(pictures))
    assert near.argmin(1).tolist() == [0, 1, 2] and np.allclose(np.diag(near), 0, atol=0.5)
    assert nearest_caption("a red cat", ["a blue cat here", "a red dog", "red cat"]) == 2
