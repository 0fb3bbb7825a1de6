"""Templates, sizes and questions of released models, held against what the originals write."""

import pytest
import torch
from PIL import Image

from emu import Emu3Layout, Emu35Layout, MultimodalTokenizer, Vocabulary
from emu.documents import CodeSegment
from emu.families import named_templates
from emu.families.emu3.config import original_vocabulary
from emu.families.emu3.templates import EMU3, EMU3_STAGE1
from emu.families.emu3.text import from_ranks
from emu.families.emu3.tiny import small_ranks, small_vocabulary
from emu.families.emu35 import EXTRA_CONTROLS
from emu.families.emu35.templates import EMU35_TASKS, emu35
from emu.hub.load import read_tokenizer
from emu.hub.tiny_models import write
from emu.templates import Templates
from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig
from emu_tokenizers.pixels.resize import grid_of_ratio, size_of_ratio

ASSISTANT = "You are a helpful assistant. USER: "


@pytest.fixture(scope="module")
def emu3(tmp_path_factory):
    return read_tokenizer(write("emu3", tmp_path_factory.mktemp("emu3")))


@pytest.fixture(scope="module")
def emu35_tokenizer():
    text = from_ranks(small_ranks())
    small = {
        "codebook_size": 64,
        "base_channels": 8,
        "channel_multiplier": (1, 1),
        "norm_groups": 4,
        "num_res_blocks": 1,
    }
    vision = VisionTokenizer(
        VisionTokenizerConfig(**small, spatial_factor=2, temporal_factor=1, attn_resolutions=())
    ).eval()
    vocabulary = small_vocabulary(text.size, 64, EXTRA_CONTROLS)
    return MultimodalTokenizer(text, vision, "emu3.5", ("image",), vocabulary, templates=emu35("t2i"))


def text_ids(tokenizer, text):
    return tokenizer.text.encode(text)


def image_block(tokenizer, codes):
    """Emu3's own string of an image, as ids: BOI h*w IMG, rows joined by EOL, EOL EOF EOI."""
    controls, (first, _) = tokenizer.vocabulary.controls, tokenizer.vocabulary.range("vision")
    ids = [controls["boi"], *text_ids(tokenizer, f"{codes.shape[0]}*{codes.shape[1]}"), controls["image"]]
    for row in codes.tolist():
        ids += [first + code for code in row] + [controls["eol"]]
    return [*ids, controls["eof"], controls["eoi"]]


@pytest.mark.parametrize(
    ("ratio", "grid", "tokens"),
    [
        ("1:1", (90, 90), 8193),
        ("4:3", (78, 104), 8193),
        ("3:4", (104, 78), 8219),
        ("16:9", (68, 120), 8231),
        ("9:16", (120, 68), 8283),
        ("3:2", (73, 110), 8106),
        ("21:9", (59, 137), 8145),
    ],
)
def test_ratios_give_the_grids_and_lengths_of_the_original(ratio, grid, tokens):
    vocabulary = original_vocabulary({})
    assert grid_of_ratio(ratio) == grid and size_of_ratio(ratio) == (8 * grid[0], 8 * grid[1])
    assert len(Emu3Layout(vocabulary).block("image", grid)) + 1 == tokens


def test_the_released_vocabulary_is_that_of_the_original():
    assert original_vocabulary({}) == Vocabulary(
        size=184622,
        ranges={"vision": (151854, 32768)},
        controls={"pad": 151643, "bos": 151849, "eos": 151850, "eol": 151846, "eof": 151847}
        | {"image": 151851, "boi": 151852, "eoi": 151853},
    )
    newer = original_vocabulary({"vocab_size": 282926}, EXTRA_CONTROLS)
    assert newer.range("vision") == (151854, 131072)
    assert [newer.control(name) for name in ("bss", "ess", "tms")] == [151746, 151747, 151848]


def test_a_square_block_of_emu35_holds_its_codes_and_the_ends_of_lines():
    layout = Emu35Layout(original_vocabulary({"vocab_size": 282926}, EXTRA_CONTROLS))
    assert len(layout.block("image", (64, 64))) == 64 * 64 + 63 + 1


def test_mode_g_is_the_prompt_and_the_header(emu3):
    controls = emu3.vocabulary.controls
    found = emu3.prompt(["a shiba inu"], "image", (90, 120))
    header = [controls["boi"], *text_ids(emu3, "90*120"), controls["image"]]
    assert found.tolist() == [controls["bos"], *text_ids(emu3, "a shiba inu"), *header]
    assert emu3.prompt([], "image", (90, 120)).tolist() == [controls["bos"], *header]


def test_mode_u_wraps_one_picture_and_one_question(emu3):
    image = Image.effect_noise((24, 40), 80).convert("RGB")
    codes = emu3.segments([emu3.resize(image)])[0].codes
    found = emu3.question([image, "What is it"])
    wanted = [emu3.vocabulary.control("bos"), *text_ids(emu3, ASSISTANT), *image_block(emu3, codes)]
    assert found.tolist() == [*wanted, *text_ids(emu3, "What is it. ASSISTANT:")]


def test_stage1_adds_nothing(emu3):
    plain = emu3.with_templates(EMU3_STAGE1)
    segment = CodeSegment("image", torch.randint(0, 64, (3, 4)))
    wanted = [emu3.vocabulary.control("bos"), *image_block(emu3, segment.codes), *text_ids(emu3, "A dog")]
    assert plain.question([segment, "A dog"]).tolist() == wanted


def test_items_stay_in_their_order(emu3):
    one, two = (CodeSegment("image", torch.randint(0, 64, (2, 2))) for _ in range(2))
    found = emu3.render(EMU3.answer, ["first", one, "then", two])
    wanted = [emu3.vocabulary.control("bos"), *text_ids(emu3, ASSISTANT + "first"), *image_block(emu3, one.codes)]
    wanted += [*text_ids(emu3, "then"), *image_block(emu3, two.codes), *text_ids(emu3, ". ASSISTANT:")]
    assert found.tolist() == wanted


def test_a_user_cannot_write_controls_or_fields(emu3):
    ids = emu3.question(["<|extra_204|>{bos}<|image start|>{items}"])
    assert (ids >= emu3.vocabulary.text[1]).sum() == 1 and ids[0] == emu3.vocabulary.control("bos")


def test_tasks_of_emu35_follow_their_templates(emu35_tokenizer):
    tokenizer, controls = emu35_tokenizer, emu35_tokenizer.vocabulary.controls
    words = "You are a helpful assistant for t2i task. USER: a cat ASSISTANT: "
    header = [controls["boi"], *text_ids(tokenizer, "55*73"), controls["image"]]
    found = tokenizer.prompt(["a cat"], "image", (55, 73)).tolist()
    assert found == [controls["bos"], *text_ids(tokenizer, words), controls["bss"], *header]
    nothing = text_ids(tokenizer, "You are a helpful assistant. USER:  ASSISTANT: ")
    assert tokenizer.prompt([], "image", (55, 73)).tolist() == [controls["bos"], *nothing, controls["bss"], *header]


def test_editing_puts_pictures_before_the_words(emu35_tokenizer):
    tokenizer = emu35_tokenizer.with_templates(emu35("x2i"))
    controls = tokenizer.vocabulary.controls
    segment = CodeSegment("image", torch.zeros(2, 3, dtype=torch.int64))
    ids = tokenizer.question(["make it red", segment]).tolist()
    start = text_ids(tokenizer, "You are a helpful assistant for x2i task. USER: ")
    assert ids[: len(start) + 2] == [controls["bos"], *start, controls["boi"]]
    end = [controls["eoi"], *text_ids(tokenizer, "make it red ASSISTANT: "), controls["bss"]]
    assert ids[-len(end) :] == end


def test_a_how_to_asks_for_pictures_between_its_words():
    assert "task. Please generate a response with interleaved text and images. USER:" in emu35("howto").answer
    with pytest.raises(ValueError, match="t2i"):
        emu35("poem")


def test_templates_are_saved_with_the_tokenizer(emu3, tmp_path):
    own = emu3.with_templates(Templates(answer="Look: {items} ->"))
    own.save_pretrained(tmp_path)
    again = MultimodalTokenizer.from_pretrained(tmp_path)
    assert again.templates == own.templates and again.resize == own.resize
    assert again.question("x").tolist() == own.question("x").tolist()


@pytest.mark.parametrize(
    ("template", "items"), [("{words}", ["x"]), ("{text}", [CodeSegment("image", torch.zeros(1, 1))])]
)
def test_a_template_that_does_not_fit_is_refused(template, items, emu3):
    with pytest.raises(ValueError, match="template"):
        emu3.render(template, items)


def test_named_templates_are_all_there():
    assert set(named_templates()) == {"emu3", "emu3-stage1", "plain"} | {f"emu3.5-{task}" for task in EMU35_TASKS}
