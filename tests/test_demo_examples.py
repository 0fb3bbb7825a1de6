"""The data of the bundled models as examples: what is trained on and held out, and who grades."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from emu.cli.main import main
from emu.demo.bundled_examples import DigitExamples, EmojiExamples, numbers_of
from emu.demo.digits import draw_stills, load_digits
from emu.demo.examples_by_name import register_examples
from emu.demo.pictures.emoji import load_emoji
from emu.evaluation.suites.memorisation import draws_pictures
from emu.evaluation.suites.training_examples import EXAMPLES, HELD_OUT, PARTS, TRAINED, Grading
from emu.pipeline import Emu


@pytest.fixture(scope="module")
def digits():
    return Emu.from_pretrained("digits")


@pytest.fixture(scope="module")
def pictures():
    return Emu.from_pretrained("pictures")


def words_of(emu, document):
    (span,) = [span for span in document.spans if span.modality == "text"][:1]
    return emu.tokenizer.layout.decode_text(document.ids[span.start : span.start + span.length].tolist())


def test_digits_are_held_out_in_every_task_and_trained_on_in_nine_places(digits):
    examples = DigitExamples(digits.tokenizer)
    for task in examples.tasks:
        documents = examples.documents(task, HELD_OUT, 3)
        assert len(documents) == 3 and all((document.weights > 0).any() for document in documents)
    trained = examples.documents("text_to_image", TRAINED, 18)
    assert len({tuple(document.ids.tolist()) for document in trained}) == 18
    assert draws_pictures(digits, trained) and words_of(digits, trained[0]).startswith("a handwritten ")


@pytest.mark.slow
def test_emoji_are_the_tones_that_training_never_showed(pictures):
    examples, emoji = EmojiExamples(pictures.tokenizer), load_emoji()
    captions = {emoji.captions[row] for row in emoji.held_out}
    held_out = {words_of(pictures, document) for document in examples.documents("text_to_image", HELD_OUT, 6)}
    assert len(held_out) == 6 and held_out <= captions
    assert not {words_of(pictures, document) for document in examples.documents("text_to_image", TRAINED, 6)} & captions
    for task in examples.tasks:
        assert all(len(examples.documents(task, part, 1)) == 1 for part in PARTS)


@pytest.mark.slow
def test_graders_know_real_pictures(digits, pictures):
    _, real = load_digits()
    shown = np.stack([np.asarray(Image.fromarray(one.numpy()).convert("RGB")) for one in draw_stills(real.images[:40])])
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    captions = [f"a handwritten {names[label]}" for label in real.labels[:40]]
    examples = DigitExamples(digits.tokenizer)
    assert (
        examples.grade(captions, shown).mean() > 0.9 and examples.grade(captions[1:] + captions[:1], shown).mean() < 0.5
    )
    emoji, others = load_emoji(), EmojiExamples(pictures.tokenizer)
    rows = emoji.held_out[:5]
    asked = [emoji.captions[row] for row in rows]
    assert others.grade(asked, emoji.pictures[rows]).all()
    assert not others.grade(asked[1:] + asked[:1], emoji.pictures[rows]).any()
    assert isinstance(examples, Grading) and isinstance(others, Grading)


def test_captions_of_other_data_are_refused_by_name():
    with pytest.raises(ValueError, match="the caption 'a red circle' is none of 'digits'"):
        numbers_of(["a digit", "a red circle"], {"a digit": 0}, "digits")
    with pytest.raises(ValueError, match="no vision tokenizer; handwritten digits are pictures"):
        DigitExamples(SimpleNamespace(vision=None))


def test_names_are_those_of_the_bundled_models():
    register_examples()
    register_examples()
    assert {"digits", "pictures"} <= set(EXAMPLES)


@pytest.mark.slow
def test_the_bundled_models_are_compared_as_a_newcomer_would(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--documents", "30", "--samples", "30", "--scales", "1,3"]
    assert main(["evaluate", "digits", "pictures", "--suite", "likelihood,memorisation,guidance,vqa", *few]) == 0
    table = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["suites"]
    assert set(table["vqa"]["left_out"]) == {"digits", "pictures"} and not table["vqa"]["figures"]
    bits = table["likelihood"]["figures"]["bits a token/text_to_image"]
    assert bits["digits"]["value"] == pytest.approx(5.6, abs=0.6) and "difference" not in bits["pictures"]
    assert table["memorisation"]["figures"]["copies/text_to_image/held-out prompts"]["digits"]["value"] < 0.1
    free = table["guidance"]["figures"]
    assert free["free bits/guidance 3"]["digits"]["value"] < free["free bits/guidance 1"]["digits"]["value"]
    assert (tmp_path / "evaluation" / "pictures" / "guidance.png").is_file()
