"""Copies of training examples and repeats are found, and figures stand beside those of real held-out examples."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from emu import Emu
from emu.documents import CodeSegment, TextSegment
from emu.evaluation.memorisation import NEAR, PictureSet, near_threshold, nearest, repeats, thumbnails
from emu.evaluation.suites import SUITES, Unsuited
from emu.evaluation.suites import memorisation as suite_module
from emu.evaluation.suites.memorisation import MemorisationSuite, MemorySubject, check_draws, codes_of, draws_pictures
from emu.evaluation.suites.training_examples import EXAMPLES, HELD_OUT, TRAINED
from emu.trained import Trained


def grids(seed, count, side=2):
    return torch.randint(0, 16, (count, side, side), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vision(request):
    return request.getfixturevalue("tiny_emu").tokenizer.vision


def test_a_copy_is_no_code_and_no_level_away_and_one_changed_code_is_a_quarter(vision):
    known = PictureSet.of(vision, grids(0, 50).unique(dim=0))
    changed = known.codes[7:8].clone()
    changed[0, 1, 1] = (changed[0, 1, 1] + 1) % 16
    found = nearest(PictureSet.of(vision, torch.cat([known.codes[3:5], changed])), known)
    assert found.differing[:2].tolist() == [0, 0] and found.differing[2] <= 0.25
    assert found.by_codes[:2].tolist() == found.by_pixels[:2].tolist() == [3, 4]
    assert found.levels[:2].tolist() == [0, 0]


def test_nearest_pictures_are_those_of_a_search_one_by_one(vision):
    ours, known = PictureSet.of(vision, grids(1, 70)), PictureSet.of(vision, grids(2, 90))
    found = nearest(ours, known)
    for i in range(70):
        levels = [np.sqrt(((ours.rows[i] - row).astype(float) ** 2).mean()) for row in known.rows]
        differing = [float((ours.codes[i] != codes).float().mean()) for codes in known.codes]
        assert found.levels[i] == pytest.approx(min(levels), abs=1e-3)
        assert found.differing[i] == min(differing) == differing[found.by_codes[i]]


def test_thumbnails_are_means_of_blocks():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8)
    expected = pixels.reshape(3, 16, 4, 16, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(3, -1)
    assert thumbnails(pixels) == pytest.approx(expected, abs=1e-3)
    assert thumbnails(pixels[:, :8, :8]) == pytest.approx(pixels[:, :8, :8].transpose(0, 3, 1, 2).reshape(3, -1))


def test_repeats_are_the_later_ones_and_near_is_a_share_of_real_examples(vision):
    codes = torch.cat([grids(3, 5), grids(3, 5)[[2, 2]]])
    assert repeats(codes).tolist() == [False] * 5 + [True] * 2
    real = nearest(PictureSet.of(vision, grids(4, 200)), PictureSet.of(vision, grids(5, 300)))
    assert (real.levels <= near_threshold(real)).mean() == pytest.approx(NEAR, abs=0.01)
    with pytest.raises(ValueError, match="grids of one size"):
        nearest(PictureSet.of(vision, grids(0, 2)), PictureSet.of(vision, grids(0, 2, 3)))


class Few:
    """Pictures of random codes after one of two captions."""

    tasks = ("image_to_text", "text_to_image")

    def __init__(self, tokenizer):
        self.layout = tokenizer.layout

    def documents(self, task, part, limit=None):
        words = [TextSegment(torch.tensor(self.layout.encode_text(text))) for text in ("a red circle", "a ball")]
        codes = grids(int(part == TRAINED), 120 if part == TRAINED else 40)
        made = [[words[i % 2], CodeSegment("image", grid)] for i, grid in enumerate(codes)]
        return [self.layout.build(some[:: 1 if task == "text_to_image" else -1]) for some in made][:limit]


@pytest.mark.parametrize("copying", [False, True])
def test_a_model_that_hands_out_its_training_examples_is_found_out(tiny_emu, monkeypatch, copying):
    examples = Few(tiny_emu.tokenizer)
    if copying:
        monkeypatch.setattr(suite_module, "drawn", lambda subject, documents: grids(1, 120)[torch.arange(40) // 2])
    lines = []
    report = MemorisationSuite().run(MemorySubject(tiny_emu, examples, ["text_to_image"], 40), lines.append)
    figures = report.figures
    assert figures["copies/text_to_image/real"] == 0 and figures["repeats/text_to_image/real"] == 0
    if copying:
        assert figures["copies/text_to_image/held-out prompts"] == figures["near/text_to_image/trained prompts"] == 1
        assert figures["repeats/text_to_image/held-out prompts"] == 0.5
        assert figures["levels apart/text_to_image/held-out prompts"] == 0
    else:
        assert figures["codes that differ/text_to_image/held-out prompts"] > 0.1
    assert report.gallery[0].data.startswith(b"\x89PNG") and len(report.figures) == 15 == len(lines)


def test_a_task_that_training_did_not_have_is_left_out_and_pictures_of_several_sizes_are_told(tiny_emu):
    class Unlike(Few):
        def documents(self, task, part, limit=None):
            return [] if part == TRAINED else super().documents(task, part, limit)

    lines = []
    subject = MemorySubject(tiny_emu, Unlike(tiny_emu.tokenizer), ["text_to_image"], 40)
    assert not MemorisationSuite().run(subject, lines.append).figures
    assert lines == ["text_to_image: left out, it has 40 held-out and 0 training examples, and 30 and 1 are needed"]
    layout = tiny_emu.tokenizer.layout
    mixed = [layout.build([CodeSegment("image", grids(0, 1, side)[0])]) for side in (2, 3)]
    with pytest.raises(
        ValueError, match=r"pictures of 2 grids of codes, \[\(2, 2\), \(3, 3\)\]; expected pictures of one size"
    ):
        codes_of(tiny_emu, mixed)


def test_what_has_no_pictures_after_words_is_refused(tiny_emu, tmp_path):
    examples = Few(tiny_emu.tokenizer)
    assert draws_pictures(tiny_emu, examples.documents("text_to_image", HELD_OUT))
    assert not draws_pictures(tiny_emu, examples.documents("image_to_text", HELD_OUT))
    tiny_emu.save_pretrained(tmp_path / "model")
    asked = {"model": str(tmp_path / "model"), "samples": 40, "guidance_scale": None, "train": None, "held_out": None}
    EXAMPLES.register("words", type("OnlyWords", (Few,), {"tasks": ("image_to_text",)}))
    try:
        with pytest.raises(Unsuited, match="no pictures after words, only image_to_text"):
            SUITES["memorisation"].prepare(Namespace(**asked, examples="words"))
    finally:
        EXAMPLES.unregister("words")
    reader = Emu(tiny_emu.model, tiny_emu.tokenizer, tiny_emu.defaults, trained=Trained(("image_to_text",)))
    with pytest.raises(Unsuited, match="not trained for text_to_image; it was trained for image_to_text"):
        check_draws(reader)
    with pytest.raises(ValueError, match="3 samples are too few"):
        SUITES["memorisation"].prepare(Namespace(**{**asked, "samples": 3}, examples=None))
