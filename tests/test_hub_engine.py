"""Greedy image codes of the engine equal those of transformers' documented call, token for token."""

import pytest
import torch
from transformers import AutoProcessor, Emu3ForConditionalGeneration

from emu import Emu3Layout, EmuForCausalLM, Vocabulary
from emu.families.emu3.text import read_text_tokenizer
from emu.families.transformers_emu3.tiny import write_model
from emu.generation import Engine
from emu.hub.transformers_reference import generate_codes
from emu_tokenizers.pixels.resize import grid_of_ratio

PROMPTS = ["a shiba inu", "a portrait of young girl. (hello) world\n\nmasterpiece", "x", "def f(x): 90*90"]
NEGATIVES = ["lowres, bad anatomy", "", "error, text, bad hands, lowres, bad anatomy", "text"]
AREA = 64 * 64


class Pair:
    """A folder opened by transformers and by us."""

    def __init__(self, folder, split="original"):
        self.theirs = Emu3ForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        model = EmuForCausalLM.from_pretrained(folder)
        vocabulary = Vocabulary.from_dict(model.config.vocabulary)
        self.layout = Emu3Layout(vocabulary, read_text_tokenizer(folder, vocabulary, split))
        self.engine = Engine(model, self.layout)

    def ids(self, text, grid=None):
        header = self.layout.header("image", grid) if grid else []
        return torch.tensor([self.layout.vocabulary.control("bos"), *self.layout.encode_text(text), *header])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair(write_model(tmp_path_factory.mktemp("released")))


@pytest.mark.parametrize("ratio", ["1:1", "16:9", "3:4"])
@pytest.mark.parametrize("batch", [1, 4])
def test_greedy_codes_equal_the_documented_call(ratio, batch, pair):
    grid = grid_of_ratio(ratio, AREA)
    prompts, negatives = PROMPTS[:batch], NEGATIVES[:batch]
    wanted = generate_codes(pair.theirs, pair.processor, prompts, negatives, ratio=ratio, image_area=AREA)
    found = pair.engine.generate_codes(
        [pair.ids(text, grid) for text in prompts], [pair.ids(text, grid) for text in negatives], grid, temperature=0.0
    )
    assert torch.equal(found, wanted)
    assert wanted.unique().numel() > 10, "a model that repeats itself proves nothing"


def test_every_row_of_a_batch_equals_its_prompt_alone(pair):
    grid = (5, 7)
    prompts = [pair.ids(text, grid) for text in PROMPTS]
    negatives = [pair.ids(text, grid) for text in NEGATIVES]
    together = pair.engine.generate_codes(prompts, negatives, grid, temperature=0.0)
    for row, prompt, negative in zip(together, prompts, negatives, strict=True):
        assert torch.equal(pair.engine.generate_codes([prompt], [negative], grid, temperature=0.0)[0], row)


def test_negative_prompts_without_a_header_are_followed_too(pair):
    grid = grid_of_ratio("3:2", AREA)
    wanted = generate_codes(
        pair.theirs, pair.processor, PROMPTS[:2], NEGATIVES[:2], ratio="3:2", image_area=AREA, header=False
    )
    with pytest.warns(UserWarning, match="header"):
        found = pair.engine.generate_codes(
            [pair.ids(text, grid) for text in PROMPTS[:2]],
            [pair.ids(text) for text in NEGATIVES[:2]],
            grid,
            temperature=0.0,
        )
    assert torch.equal(found, wanted)


def test_a_guidance_scale_of_one_is_the_conditional_model_alone(pair):
    wanted = generate_codes(
        pair.theirs, pair.processor, PROMPTS[:2], NEGATIVES[:2], image_area=AREA, guidance_scale=1.0
    )
    grid = grid_of_ratio("1:1", AREA)
    prompts = [pair.ids(text, grid) for text in PROMPTS[:2]]
    assert torch.equal(pair.engine.generate_codes(prompts, grid=grid, temperature=0.0, guidance_scale=1.0), wanted)


@pytest.mark.parametrize("split", ["original", "transformers"])
@pytest.mark.parametrize("text", [*PROMPTS, "IT'S http://a.b/c_d", "", "\n\n", "\u00e9\u0301"])
def test_prompt_ids_equal_the_processor(split, text, tmp_path_factory):
    pair = pair_of(split, tmp_path_factory)
    ids = pair.processor(
        text=[text], return_for_image_generation=True, ratio="16:9", image_area=AREA, return_tensors="pt"
    )["input_ids"][0]
    assert ids.tolist() == pair.ids(text, grid_of_ratio("16:9", AREA)).tolist()


_pairs = {}


def pair_of(split, tmp_path_factory):
    """A folder whose tokenizer.json splits in one way or the other, read with that rule."""
    if split not in _pairs:
        _pairs[split] = Pair(write_model(tmp_path_factory.mktemp(split), split=split), "transformers")
    return _pairs[split]


def test_a_converted_folder_is_repaired_by_default(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("gpt2"), split="transformers")
    vocabulary = Vocabulary.from_dict(EmuForCausalLM.from_pretrained(folder).config.vocabulary)
    repaired, kept = (read_text_tokenizer(folder, vocabulary, split) for split in ("original", "transformers"))
    assert repaired.encode("def f(x):") != kept.encode("def f(x):")
    assert kept.encode("e\u0301") != repaired.encode("e\u0301") == repaired.encode("\u00e9")
