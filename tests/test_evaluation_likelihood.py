"""Bits a token and a pixel: an independent computation gives the same, and data that is another model's is refused."""

from argparse import ArgumentParser, Namespace
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image

from emu.data.shards import TokenizedDocument, write_manifest, write_shard
from emu.documents import CodeSegment, Text, Video
from emu.evaluation.likelihood import asked_for, likelihoods, ratio
from emu.evaluation.suites import SUITES, Unsuited
from emu.evaluation.suites.likelihood import LikelihoodSubject, LikelihoodSuite
from emu.evaluation.suites.training_examples import (
    EXAMPLES,
    HELD_OUT,
    ShardExamples,
    WorldExamples,
    add_example_options,
    find_examples,
)
from emu.worlds import moving, shapes
from emu.worlds.patch_tokenizer import fit_tokenizer
from emu.worlds.scene_documents import WorldDocuments
from tests.shards_toys import make_documents, write


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@lru_cache
def made(tokenizer, task, count=30):
    """Documents of a task, all segments of weight 1 but what is given."""
    found = []
    for i in range(count):
        picture = Image.fromarray(noise(i, 8, 8, 3))
        if task == "text_to_image":
            items = [Text("a red circle", 0.2), picture]
        elif task == "image_to_text":
            items = [picture, Text("What is it?", 0.0), Text("a ball"[: 1 + i % 6])]
        else:
            items = [Text("a ball rolling left", 0.2), Video(noise(i, 8, 8, 8, 3), 4)]
        found.append(tokenizer.document(items))
    return found


def bits_by_hand(model, tokenizer, document, num_asked):
    """Sum of -log2 p of the codes of the last block, or of the last `num_asked` words and the end, from logits in float64."""
    logits = model(document.ids[None]).logits[0].double()
    log2 = logits.log_softmax(-1) / np.log(2)
    first, count = tokenizer.vocabulary.ranges["vision"]
    codes = [i for i, index in enumerate(document.ids.tolist()) if first <= index < first + count]
    places = codes[-num_asked:] if num_asked > 0 else list(range(len(document.ids) + num_asked, len(document.ids)))
    return -sum(float(log2[place - 1, document.ids[place]]) for place in places)


@pytest.mark.parametrize(("task", "codes"), [("text_to_image", 4), ("image_to_text", None), ("text_to_video", 8)])
@torch.no_grad()
def test_bits_equal_an_independent_computation(tiny_emu, task, codes):
    model, tokenizer = tiny_emu.model.double(), tiny_emu.tokenizer
    documents = made(tokenizer, task)
    try:
        found = likelihoods(model, tokenizer, documents)
        words = [-1 - len(tokenizer.layout.encode_text("a ball"[: 1 + i % 6])) for i in range(30)]
        expected = [bits_by_hand(model, tokenizer, document, codes or words[i]) for i, document in enumerate(documents)]
    finally:
        model.float()
    assert found.bits == pytest.approx(expected, rel=1e-6)
    tokens = [codes or -word for word in words]
    assert found.tokens.tolist() == tokens
    # A code of a picture stands for 4x4 pixels, that of a clip for as many in each of four frames.
    assert found.pixels.tolist() == [{"text_to_image": 64, "text_to_video": 512}.get(task, 0)] * 30
    assert found.per_token().value == pytest.approx(sum(expected) / sum(tokens))
    assert (found.per_pixel() is None) == (task == "image_to_text")


def test_documents_of_worlds_ask_for_what_weighs_something_in_them():
    worlds = {"one": shapes(1), "moving": moving(4)}
    tokenizer = fit_tokenizer(list(worlds.values()))
    examples = WorldExamples({name: WorldDocuments(world, tokenizer) for name, world in worlds.items()})
    for task in examples.tasks:
        for document in examples.documents(task, HELD_OUT, 5):
            assert torch.equal(asked_for(tokenizer, document)[0], document.weights > 0)


def test_a_ratio_is_that_of_the_sums_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        units = rng.integers(1, 9, 200)
        bits = units * 2.0 + rng.normal(size=200)
        found = ratio(bits, units, "all")
        assert found.value == pytest.approx(bits.sum() / units.sum())
        covered += found.interval.low <= 2 <= found.interval.high
    assert 180 <= covered <= 199


class Given:
    """Examples of one's own."""

    tasks = ("text_to_image", "image_to_text", "text_to_video")

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def documents(self, task, part, limit=None):
        return made(self.tokenizer, task)[: 10 if task == "text_to_video" else limit]


def test_the_report_is_by_task_and_by_modality_and_says_what_has_too_few(tiny_emu):
    lines = []
    report = LikelihoodSuite().run(LikelihoodSubject(tiny_emu, Given(tiny_emu.tokenizer), 30), lines.append)
    assert set(report.figures) == {
        "bits a token/text_to_image",
        "bits a pixel/text_to_image",
        "bits a token/image_to_text",
        "bits a token/all image",
        "bits a pixel/all image",
        "bits a token/all text",
    }
    assert report.figures["bits a token/all image"] == report.figures["bits a token/text_to_image"]
    assert "text_to_video: left out, it has 10 held-out documents, and 30 are needed" in lines
    same = LikelihoodSuite().run(LikelihoodSubject(tiny_emu, Given(tiny_emu.tokenizer), 30), lines.append)
    for name, measure in report.measures.items():
        assert measure.minus(same.measures[name]).value == 0


def test_documents_that_ask_for_nothing_or_for_different_things_are_refused(tiny_emu):
    picture = CodeSegment("image", torch.zeros(2, 2, dtype=torch.int64), weight=0.0)
    document = tiny_emu.tokenizer.layout.build([picture])
    with pytest.raises(ValueError, match="asks for nothing"):
        asked_for(tiny_emu.tokenizer, document)
    mixed = made(tiny_emu.tokenizer, "text_to_image", 2) + made(tiny_emu.tokenizer, "image_to_text", 2)
    with pytest.raises(ValueError, match=r"ask for \['image', 'text'\]"):
        likelihoods(tiny_emu.model, tiny_emu.tokenizer, mixed)


def test_shards_are_read_by_task_and_those_of_another_tokenizer_are_refused(tiny_emu, tmp_path):
    tokenizer = tiny_emu.tokenizer
    documents = [document for task in Given.tasks for document in made(tokenizer, task, 6)]
    (tmp_path / "mine").mkdir()
    write_shard(tmp_path / "mine", 0, [TokenizedDocument(document) for document in documents], tokenizer.vocabulary, {})
    write_manifest(tmp_path / "mine", 1, tokenizer.vocabulary, tokenizer.fingerprints)
    examples = ShardExamples({HELD_OUT: [tmp_path / "mine"]}, tokenizer)
    assert list(examples.tasks) == list(Given.tasks)
    for task in examples.tasks:
        found = examples.documents(task, HELD_OUT, 3)
        assert [one.ids.tolist() for one in found] == [one.ids.tolist() for one in made(tokenizer, task, 6)[::2]]
    (tmp_path / "theirs").mkdir()
    write(tmp_path / "theirs", make_documents(3))
    with pytest.raises(ValueError, match="tokenize the data with the model's own tokenizers"):
        ShardExamples({HELD_OUT: [tmp_path / "theirs"]}, tokenizer)


def options(model, *words):
    parser = ArgumentParser()
    parser.add_argument("model")
    add_example_options(parser)
    return parser.parse_args([str(model), *words])


def test_what_a_model_was_trained_on_is_found_or_asked_for(tiny_emu, tmp_path):
    tiny_emu.save_pretrained(tmp_path / "model")
    with pytest.raises(Unsuited, match="nothing is known of what .*--train and --held-out"):
        find_examples(options(tmp_path / "model"), tiny_emu.tokenizer, [HELD_OUT])
    with pytest.raises(Unsuited, match="--held-out is not given"):
        find_examples(options(tmp_path / "model", "--train", str(tmp_path)), tiny_emu.tokenizer, [HELD_OUT])
    with pytest.raises(ValueError, match="both given"):
        find_examples(options("m", "--train", "a", "--examples", "digits"), tiny_emu.tokenizer, [HELD_OUT])
    with pytest.raises(ValueError, match="examples 'letters' is not registered"):
        find_examples(options("m", "--examples", "letters"), tiny_emu.tokenizer, [HELD_OUT])
    EXAMPLES.register("letters", Given)
    try:
        assert isinstance(find_examples(options("m", "--examples", "letters"), tiny_emu.tokenizer, [HELD_OUT]), Given)
    finally:
        EXAMPLES.unregister("letters")
    too_few = Namespace(model=str(tmp_path / "model"), documents=3)
    with pytest.raises(ValueError, match="3 documents are too few"):
        SUITES["likelihood"].prepare(too_few)
