"""Any document as a prompt: its ids are those of training, sizes may differ, and results come in the order of the documents."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emu import Emu, Text, Video
from emu.data.tokenizing.document_reader import DocumentReader
from emu.generation import Engine
from emu.media import read_provenance
from emu.modalities.boxes import Boxes
from emu.trained import Trained


def picture(seed=0, height=8, width=8):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def clip(seed=0, frames=5):
    return Video(np.random.default_rng(seed).integers(0, 255, (frames, 8, 8, 3), np.uint8), 4)


DOCUMENTS = [
    ["a red circle"],
    [picture(0), "make it red"],
    [picture(0, 12, 8), picture(1), "both"],
    [picture(0), picture(1), picture(2)],
    ["a ball", picture(0), "a circle", picture(1, 8, 16), "a ball"],
    [clip(), "go on"],
    [Text("a", weight=0.0), "b", picture(3)],
    [clip(1, 4), picture(2), clip(2, 8)],
]


@pytest.fixture
def given(monkeypatch):
    """What the engine is asked to draw after: (prompt, negative) of each sequence, in the order in which they are drawn."""
    pairs = []
    generate = Engine.generate_grids

    def watched(self, prompts, negatives, *arguments, **options):
        pairs.extend(zip(prompts, negatives, strict=True))
        return generate(self, prompts, negatives, *arguments, **options)

    monkeypatch.setattr(Engine, "generate_grids", watched)
    return pairs


@pytest.mark.parametrize("drawn", [picture(9, 8, 12), clip(9, 8)], ids=["picture", "clip"])
@pytest.mark.parametrize("document", DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_a_prompt_is_the_beginning_of_what_training_writes(tiny_emu, given, document, drawn):
    trained = tiny_emu.tokenizer.encode([*document, drawn])
    if isinstance(drawn, Video):
        tiny_emu.generate_videos([document], frames=8, fps=4)
        grid = (2, 2, 2)
    else:
        tiny_emu.generate_images([document], size=(8, 12))
        grid = (2, 3)
    ((prompt, _),) = given
    block = tiny_emu.tokenizer.layout.block("video" if len(grid) == 3 else "image", grid)
    assert torch.equal(prompt, trained[: len(prompt)])
    assert len(trained) == len(prompt) + len(block) + 1  # EOS


def test_lines_of_training_files_begin_as_prompts_do(tiny_emu, given, tmp_path):
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    items = [{"image": "0.png"}, {"image": "1.png"}, {"caption": "make it red"}, {"image": "2.png"}]
    trained = DocumentReader(tiny_emu.tokenizer, tmp_path).read({"items": items})
    paths = [tmp_path / "0.png", tmp_path / "1.png", "make it red"]
    tiny_emu.generate_images([paths, [picture(0), np.asarray(picture(1)), "make it red"]])
    for prompt, negative in given:
        assert torch.equal(prompt, trained.document.ids[: len(prompt)])
        start, length = trained.caption
        without = torch.cat([prompt[:start], prompt[start + length :]])
        assert torch.equal(negative, without)  # what training shows where it leaves a caption out


def test_guidance_moves_away_from_pictures_without_words(tiny_emu, given):
    tokenizer, a, b = tiny_emu.tokenizer, picture(0), picture(1)
    cases = [
        ([a, "make it red"], "", [a]),
        ([a, "make it red"], "grey", [a, "grey"]),
        (["a", a, "b", b], "grey", ["grey" if item == "b" else item for item in [a, "b", b]]),
        ([a, b], "", [a, b]),
        ([a, b], "grey", [a, b, "grey"]),
        (["words"], "", []),
        (["words"], "grey", ["grey"]),
    ]
    for document, negative, expected in cases:
        given.clear()
        tiny_emu.generate_images([document], negative_prompt=negative)
        assert torch.equal(given[0][1], tokenizer.prompt(expected, "image", (2, 2)))


def test_values_of_other_modalities_and_segments_may_stand_in_a_document(tiny_emu, given):
    tokenizer = tiny_emu.tokenizer
    (segment,) = tokenizer.segments(picture(0))
    tiny_emu.generate_images([[segment, "a"], [picture(0), "a"]])
    assert torch.equal(given[0][0], given[1][0])
    with pytest.raises(TypeError, match="prompt 0, item 1.*Boxes"):  # this model's documents hold none
        tiny_emu.generate_images([[Boxes([[0, 0, 1, 1]]), "a"]])


def test_several_sizes_in_one_call_give_what_each_gives_alone(tiny_emu):
    sizes = [(8, 8), (16, 8), "1:2", (8, 8), ("2:1", 128), None]
    prompts = [["a ball"], [picture(1), "a"], "a", "b", "a red", "b"]
    seeds = [3, 4, 5, 6, 7, 6]
    options = {"deterministic": True, "batch_size": 2, "images_per_prompt": 2}
    together = tiny_emu.generate_images(prompts, size=sizes, seed=seeds, **options)
    assert [result.image.size for result in together[::2]] == [(8, 8), (8, 16), (4, 12), (8, 8), (16, 8), (8, 8)]
    alone = [
        result
        for prompt, size, seed in zip(prompts, sizes, seeds, strict=True)
        for result in tiny_emu.generate_images([prompt], size=size, seed=seed, **options)
    ]
    assert [one.codes.tolist() for one in together] == [one.codes.tolist() for one in alone]
    assert [one.settings for one in together] == [one.settings for one in alone]
    clips = tiny_emu.generate_videos(["a", "b"], size=[(8, 8), (4, 8)], frames=4, first_frames=None)
    assert [clip.frames[0].size for clip in clips] == [(8, 8), (8, 4)]


def test_clips_of_several_sizes_may_begin_with_pictures_of_their_own(tiny_emu):
    first = [[picture(0, 8, 8)], [picture(1, 8, 12), picture(2, 8, 12)]]
    clips = tiny_emu.generate_videos(["a", "b"], frames=9, first_frames=first)
    assert [clip.frames[0].size for clip in clips] == [(8, 8), (12, 8)]
    assert [clip.settings["first_frames"] for clip in clips] == [1, 2]


def test_edits_are_documents_of_a_picture_and_words_at_the_size_of_the_picture(tiny_emu, given, tmp_path):
    a, b = picture(0, 12, 8), picture(1)
    edited = tiny_emu.edit_images([a, b], ["make it red", "a ball"], seed=[1, 2])
    drawn = tiny_emu.generate_images(
        [[a, "make it red"], [b, "a ball"]], size=[(12, 8), (8, 8)], seed=[1, 2], deterministic=False
    )
    assert [one.codes.tolist() for one in edited] == [one.codes.tolist() for one in drawn]
    assert [one.prompt for one in edited] == ["make it red", "a ball"]
    given.clear()
    tiny_emu.edit_images(a, ["one", "two"])
    tiny_emu.edit_images([a, b], "one")
    tiny_emu.edit_images([[a, b]], "one")
    lengths = [len(prompt) for prompt, _ in given]
    assert len(lengths) == 5 and lengths[4] > max(lengths[:4])
    b.save(tmp_path / "b.png")
    (from_file,) = tiny_emu.edit_images(tmp_path / "b.png", "a ball", seed=2)
    assert from_file.codes.tolist() == edited[1].codes.tolist()


def test_files_tell_the_document_that_they_were_drawn_after(tiny_emu, tmp_path):
    picture(0).save(tmp_path / "a.png")
    document = [picture(0), "make it", clip(), "red"]
    (result,) = tiny_emu.generate_images([document])
    result.save(tmp_path / "out.png")
    told = read_provenance(tmp_path / "out.png")
    assert told["prompt"] == "make it red"
    (seen, words, moving, _) = told["settings"]["document"]
    assert seen["image"] == "8x8" and len(seen["sha256"]) == 16 and words == "make it"
    assert moving["video"] == "5x8x8" and moving["fps"] == 4
    (other,) = tiny_emu.generate_images([[picture(1), *document[1:]]])
    assert other.settings["document"][0]["sha256"] != seen["sha256"]
    (named,) = tiny_emu.generate_images([[tmp_path / "a.png", "b"]])
    assert named.settings["document"][0] == {"file": str(tmp_path / "a.png")} and json.dumps(named.settings)
    assert "document" not in tiny_emu.generate_images(["a"])[0].settings


def test_results_are_handed_out_as_they_are_done_and_in_order(tiny_emu, given):
    sizes = [(8, 8), (8, 12)] * 3
    results = tiny_emu.iter_images(["a"] * 6, size=sizes, seed=list(range(6)), batch_size=2)
    assert given == []
    first = next(results)
    assert len(given) == 2 and first.seed == 0
    assert [result.seed for result in results] == [1, 2, 3, 4, 5]
    clips = tiny_emu.iter_videos(["a", "b"], batch_size=1)
    assert next(clips).prompt == "a" and next(clips).prompt == "b"


def test_what_is_wrong_is_found_before_the_first_is_drawn(tiny_emu, given):
    with pytest.raises(ValueError, match="prompt 1, item 1"):
        tiny_emu.iter_images([["a"], [picture(0, 9, 9)]])
    assert given == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda emu: emu.generate_images([picture(), "make it red"]), r"prompt 0 is Image; expected a text or a list"),
        (lambda emu: emu.generate_images(["a", []]), r'prompt 1 is an empty document; .* ""'),
        (lambda emu: emu.generate_images([[picture(0, 9, 9), "a"]]), r"prompt 0, item 1: pixels are 9x9.*factor 4"),
        (lambda emu: emu.generate_images([["a", 3]]), "prompt 0, item 2: a document holds"),
        (lambda emu: emu.generate_images([["a", np.zeros((8, 8))]]), r"prompt 0, item 2: an array of float64 \(8, 8\)"),
        (lambda emu: emu.generate_images([[Path("nowhere.png"), "a"]]), "nowhere.png"),
        (
            lambda emu: emu.generate_images(["a", [picture(0, 32, 32)] * 7]),
            r"prompt 1 has \d+ tokens and the image to draw \d+, more than the model's 512 positions; leave out some",
        ),
        (lambda emu: emu.generate_images(["a", "b"], size=[(8, 8)]), "1 sizes for 2 prompts"),
        (lambda emu: emu.generate_images(["a", "b"], size=[(8, 8), (8, 9)]), "width.*factor 4"),
        (lambda emu: emu.generate_images("a", size="wide"), "width:height"),
        (lambda emu: emu.generate_images("a", size="40:1"), "no code along one side"),
        (lambda emu: emu.generate_images("a", size=("4:3", 0)), "area is 0"),
        (lambda emu: Emu(emu.model, emu.tokenizer).generate_images("a", size="4:3"), r'no default area; .*"4:3", '),
        (lambda emu: emu.edit_images(picture(0, 9, 9), "a"), "9x9.*factor 4|factor 4"),
        (lambda emu: emu.edit_images([picture()] * 2, ["a"] * 3), "2 pictures for 3 prompts"),
        (lambda emu: emu.edit_images([], "a"), "0 pictures and 1 prompts"),
        (lambda emu: emu.edit_images(picture(), ["a", 3]), "prompt 1 is int"),
        (lambda emu: emu.edit_images(clip(), "a"), "a picture is Video"),
        (lambda emu: emu.edit_images(picture(), "a", mask=picture()), "not trained for image_infill"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_to_do(tiny_emu, given, call, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        call(tiny_emu)
    assert given == []


@pytest.mark.parametrize(
    ("document", "task"),
    [
        ([picture(), "make it red"], "image_and_text_to_image"),
        ([picture(), picture(), picture()], "image_to_image"),
        ([clip(), "a still of it"], "video_and_text_to_image"),
        ([Path("some.gif"), "a still of it"], "video_and_text_to_image"),
    ],
)
def test_a_document_of_a_task_that_was_not_trained_is_refused_by_name(tiny_emu, document, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture().save("some.gif", save_all=True, append_images=[picture(1)])
    emu = Emu(tiny_emu.model, tiny_emu.tokenizer, tiny_emu.defaults, trained=Trained(("text_to_image",)))
    with pytest.raises(ValueError, match=f"not trained for {task}; .*text_to_image"):
        emu.generate_images([["a"], document])
    allowed = Emu(tiny_emu.model, tiny_emu.tokenizer, tiny_emu.defaults, trained=Trained((task,)))
    assert allowed.generate_images([document])
    if task == "image_and_text_to_image":
        assert allowed.generate_images([document[:1]])  # captions that training leaves out


def test_texts_about_files_are_those_about_their_pictures(tiny_emu, tmp_path):
    picture(1).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "a.gif", save_all=True, append_images=[picture(2)], duration=250)
    moving = Video.open(tmp_path / "a.gif", fps=4, frames=8, size=(8, 8))
    files = [[tmp_path / "a.png", "What?"], [tmp_path / "a.gif", "What?"], [np.asarray(picture(1)), "What?"]]
    values = [[picture(1), "What?"], [moving, "What?"], [picture(1), "What?"]]
    assert tiny_emu.generate_text(files, max_new_tokens=4) == tiny_emu.generate_text(values, max_new_tokens=4)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tiny_emu.generate_text([[tmp_path / "nowhere.mp4", "What?"]])
