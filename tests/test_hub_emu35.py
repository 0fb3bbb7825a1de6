"""Emu3.5: its marks of plans and answers, documents written under its grammar, its tasks, and its files in both directions."""

import json
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file

from emu import Emu, Emu3Layout, Emu35Layout
from emu.checkpoints.weights import Checkpoint
from emu.cli.convert import main
from emu.documents import CodeSegment, Plan, TextSegment
from emu.families.detection import find_family
from emu.families.emu3.text import from_ranks
from emu.families.emu3.tiny import small_ranks, small_vocabulary
from emu.families.emu35 import EXTRA_CONTROLS
from emu.families.emu35.vision import ibq_settings, read_ibq, write_ibq
from emu.generation import Engine, Sampling
from emu.hub.load import read_tokenizer
from emu.hub.tiny_models import write
from emu.layouts import Cursor
from emu.pipeline.grid_requests import free_headers
from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig
from tests.tensors import same_tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("emu3.5", tmp_path_factory.mktemp("released") / "Emu3.5")


@pytest.fixture(scope="module")
def layout():
    text = from_ranks(small_ranks())
    return Emu35Layout(small_vocabulary(text.size, 64, EXTRA_CONTROLS), text, ["image"])


def segments_of(layout):
    words = [torch.tensor(layout.encode_text(text)) for text in ("first the sky", "then a bird", "A bird sings.")]
    picture = CodeSegment("image", torch.randint(0, 64, (2, 3)))
    return [
        TextSegment(words[0], plan="document"),
        TextSegment(words[2]),
        TextSegment(words[1], plan="image"),
        picture,
        TextSegment(words[2]),
    ]


def test_plans_stand_between_marks_of_their_own(layout):
    controls, segments = layout.vocabulary.controls, segments_of(layout)
    ids = layout.build(segments).ids.tolist()
    assert [ids.count(controls[name]) for name in ("bog", "eog", "boc", "eoc", "bss", "ess")] == [1, 1, 1, 1, 0, 0]
    assert ids.index(controls["boc"]) < ids.index(controls["eoc"]) == ids.index(controls["boi"]) - 1
    found = layout.parse(ids)
    assert [getattr(segment, "plan", None) for segment in found] == ["document", "", "image", None, ""]
    again = [getattr(segment, "ids", getattr(segment, "codes", None)) for segment in found]
    wanted = [getattr(segment, "ids", getattr(segment, "codes", None)) for segment in segments]
    assert all(torch.equal(one, other) for one, other in zip(again, wanted, strict=True))


def test_marks_of_an_answer_are_no_part_of_a_document(layout):
    controls = layout.vocabulary.controls
    ids = layout.build(segments_of(layout), add_special=False).ids.tolist()
    whole = [controls["bos"], 5, controls["bss"], *ids, controls["ess"], controls["eos"]]
    assert len(layout.parse(whole)) == 1 + len(layout.parse(ids))
    cursor = Cursor(layout)
    for index in whole:
        cursor.advance(index)
    assert cursor.ended


def test_the_cursor_knows_what_may_follow(layout):
    controls, text = layout.vocabulary.controls, layout.vocabulary.text
    begun = [controls["bos"], controls["bss"]]
    between = {index for index, count in layout.constrain(begun) if count == 1}
    assert between == {controls[name] for name in ("eos", "boi", "ess", "bog", "boc")}
    assert layout.constrain([*begun, controls["bog"], 7]) == (text, (controls["eog"], 1))
    assert layout.constrain([*begun, 7, controls["ess"]]) == ((controls["eos"], 1),)
    for wrong in ([controls["eog"]], [controls["boc"], controls["bss"]], [controls["ess"], 7]):
        with pytest.raises(ValueError, match="cannot stand here"):
            layout.constrain([*begun, *wrong])


def test_any_walk_along_allowed_tokens_parses(layout):
    headers = [layout.header("image", (2, 3))]
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        cursor, ids = Cursor(layout, headers), []
        while not cursor.ended and len(ids) < 300:
            spans = cursor.allowed()
            first, count = spans[int(torch.randint(len(spans), (), generator=draw))]
            ids.append(first + int(torch.randint(count, (), generator=draw)))
            cursor.advance(ids[-1])
        if cursor.ended:
            layout.parse(ids)


@pytest.mark.parametrize(
    ("names", "message"),
    [(("bog",), "has no end .EOG."), (("boc", "image", "eoc"), "within a plan|text or a block"), (("eoc",), "EOC")],
)
def test_broken_plans_are_named(names, message, layout):
    controls = layout.vocabulary.controls
    with pytest.raises(ValueError, match=message):
        layout.parse([controls["bos"], 5, *(controls[name] for name in names)])


def test_layouts_without_the_marks_have_no_plans():
    text = from_ranks(small_ranks())
    for kind in (Emu3Layout, Emu35Layout):
        plain = kind(small_vocabulary(text.size, 64), text, ["image"])
        with pytest.raises(ValueError, match="plans for"):
            plain.build([TextSegment(torch.tensor([5]), plan="image")])


def test_plans_of_a_document_come_back(folder):
    tokenizer = read_tokenizer(folder)
    ids = tokenizer.encode([Plan("first <|extra_61|> the sky"), "A bird.", Plan("a bird", scope="image")])
    found = tokenizer.decode(ids)
    assert found == ["first <|extra_61|> the sky", "A bird.", "a bird"]
    assert [getattr(item, "scope", None) for item in found] == ["document", None, "image"]


def planner(folder, task="story"):
    """A tiny model whose marks are likely."""
    emu = Emu.from_pretrained(folder, device="cpu", templates=f"emu3.5-{task}")
    controls, emu.tokenizer.resize = emu.tokenizer.vocabulary.controls, None
    with torch.no_grad():
        for name in ("bog", "boc", "boi", "eog", "eoc"):
            emu.model.lm_head.weight[controls[name]] *= 4
    return emu


def test_a_story_is_written_with_plans_and_pictures(folder):
    emu, kinds = planner(folder), set()
    for seed in range(6):
        options = {"size": (32, 48), "max_new_tokens": 60, "max_blocks": 2, "seed": seed}
        items = list(emu.generate(["a clay astronaut", Image.new("RGB", (48, 32))], **options))
        again = list(emu.generate(["a clay astronaut", Image.new("RGB", (48, 32))], **options))
        assert [type(item) for item in items] == [type(item) for item in again]
        kinds |= {getattr(item, "scope", type(item).__name__) for item in items}
    assert kinds == {"document", "image", "str", "Image"}


def test_a_model_may_choose_the_size_of_its_pictures(folder, monkeypatch):
    """Two digits a side; later pictures have the size of the first, and all that of the only one in the prompt."""
    emu = planner(folder)
    written = []
    monkeypatch.setattr(
        "emu.pipeline.grid_requests.range", lambda *bounds: (10, 12), raising=False
    )  # no 99 x 99 codes in a test
    monkeypatch.setattr(emu.tokenizer, "decode_segment", lambda segment: written.append(segment) or segment)
    with torch.no_grad():
        emu.model.lm_head.weight[emu.tokenizer.vocabulary.control("boi")] *= -1
    for seed in range(20):
        written.clear()
        list(emu.generate("a clay astronaut", size="auto", max_new_tokens=60, max_blocks=2, seed=seed))
        shapes = [tuple(segment.codes.shape) for segment in written if isinstance(segment, CodeSegment)]
        assert len(set(shapes)) <= 1 and all(side in (10, 12) for shape in shapes for side in shape)
        if len(shapes) == 2:
            break
    assert len(shapes) == 2
    given = CodeSegment("image", torch.zeros(2, 3, dtype=torch.int64))
    prompt = emu.tokenizer.question(["x", given])
    assert free_headers(emu.tokenizer, prompt) == [emu.tokenizer.layout.header("image", (2, 3))]
    other = CodeSegment("image", torch.zeros(2, 2, dtype=torch.int64))
    assert len(free_headers(emu.tokenizer, emu.tokenizer.question(["x", given, other]))) == 2 + 4


@torch.no_grad()
def test_pictures_are_guided_against_the_originals_context(folder):
    """The words left out, the user's pictures and all pictures so far kept (`logits_processor.py` of baaivision/Emu3.5)."""
    emu = planner(folder)
    layout, tokenizer = emu.tokenizer.layout, emu.tokenizer
    given = CodeSegment("image", torch.randint(0, 64, (2, 2)))
    prompt = tokenizer.question(["a clay astronaut", given])
    negative = tokenizer.unconditional(["a clay astronaut", given])
    engine = Engine(emu.model, layout)
    for seed in range(20):
        written = list(
            engine.generate(
                prompt,
                negative_ids=negative,
                headers=[layout.header("image", grid) for grid in ((2, 2), (2, 3))],
                text=Sampling(),
                codes=Sampling(3.0, 0.0),
                max_text_tokens=40,
                max_blocks=2,
                seed=seed,
            )
        )
        if sum(isinstance(segment, CodeSegment) for segment in written) == 2:
            break
    first, count = tokenizer.vocabulary.range("vision")
    context, without = prompt.tolist(), negative.tolist()
    for segment in written:
        ids = layout.build([segment], add_special=False).ids.tolist()
        if isinstance(segment, CodeSegment):
            for place, index in enumerate(ids):
                if first <= index < first + count:
                    rows = [torch.tensor([[*ids_before, *ids[:place]]]) for ids_before in (context, without)]
                    one, other = (F.log_softmax(emu.model(row).logits[0, -1], -1) for row in rows)
                    assert index == first + int((other + 3 * (one - other))[first : first + count].argmax())
            without += ids
        context += ids
    assert len(without) > len(negative) + 2 * 6


def test_unconditional_words_are_those_of_the_original(folder):
    tokenizer = read_tokenizer(folder, templates="emu3.5-x2i")
    controls, segment = tokenizer.vocabulary.controls, CodeSegment("image", torch.zeros(1, 2, dtype=torch.int64))
    found = tokenizer.unconditional(["make it red", segment]).tolist()
    start = tokenizer.text.encode("You are a helpful assistant. USER: ")
    assert found[: len(start) + 2] == [controls["bos"], *start, controls["boi"]]
    assert found[-len(tokenizer.text.encode(" ASSISTANT: ")) - 1 :] == [
        *tokenizer.text.encode(" ASSISTANT: "),
        controls["bss"],
    ]
    assert read_tokenizer(folder).unconditional([]) is not None


@pytest.mark.parametrize(
    ("task", "defaults", "text"),
    [
        ("t2i", ((880, 1168), 2.0, 5120), (1.0, 1024, 0.9)),
        ("story", ((624, 832), 3.0, 10240), (1.0, 1024, 0.9)),
        ("howto", ((624, 832), 3.0, 10240), (0.7, 200, 0.8)),
    ],
)
def test_tasks_bring_the_settings_of_the_originals_scripts(task, defaults, text, folder, tmp_path):
    words = {"device": "cpu", "templates": f"emu3.5-{task}"}
    assert main([str(folder), str(tmp_path / "ours"), "--to", "emu", "--templates", f"emu3.5-{task}"]) == 0
    plain = Emu.from_pretrained(folder, device="cpu")
    for emu in (Emu.from_pretrained(folder, **words), Emu.from_pretrained(tmp_path / "ours", device="cpu")):
        assert (emu.defaults.size, emu.defaults.guidance_scale, emu.defaults.top_k) == defaults
        settings = emu.tokenizer.templates.settings
        assert tuple(settings[f"text_{name}"] for name in ("temperature", "top_k", "top_p")) == text
        assert emu.tokenizer.resize.area == (1048576 if task == "t2i" else 518400)
    plain.save_pretrained(tmp_path / "plain")
    switched = Emu.from_pretrained(tmp_path / "plain", **words)
    assert (switched.defaults.guidance_scale, switched.tokenizer.templates) == (defaults[1], emu.tokenizer.templates)


def files_of(folder):
    found = {"model": dict(Checkpoint.open(folder).tensors())}
    found["vision"] = load_file(folder / "vision_tokenizer" / "model.safetensors")
    return found


def test_both_tokenizers_and_weights_go_there_and_back(folder, tmp_path):
    for source, target, to in [(folder, "ours", "emu"), (tmp_path / "ours", "back", "emu3")]:
        assert main([str(source), str(tmp_path / target), "--to", to]) == 0
    back = tmp_path / "back"
    assert find_family(back).name == "emu3.5"
    one, other = files_of(folder), files_of(back)
    assert all(same_tensors(one[part], other[part]) for part in one)
    for name in ("emu3.tiktoken", "emu3_vision_tokens.txt"):
        assert (back / name).read_bytes() == (folder / name).read_bytes()
    first, again = (Emu.from_pretrained(place, device="cpu") for place in (folder, back))
    assert first.tokenizer.fingerprints == again.tokenizer.fingerprints and first.defaults == again.defaults
    table = yaml.safe_load((back / "vision_tokenizer" / "config.yaml").read_text())
    assert {"ddconfig", "n_embed", "embed_dim"} <= set(table) and table["ddconfig"]["double_z"] is False
    assert json.loads((back / "config.json").read_text())["image_area"] == 1048576


def test_the_released_tokenizers_settings_come_back(tmp_path):
    config = VisionTokenizerConfig.preset("emu3.5")
    inner = ibq_settings(config)["ddconfig"]
    assert (inner["ch_mult"], ibq_settings(config)["n_embed"]) == ([1, 1, 2, 2, 4], 131072)
    small = VisionTokenizerConfig.preset("emu3.5", base_channels=32, codebook_size=64)
    tokenizer = VisionTokenizer(small).eval()
    write_ibq(tmp_path, tokenizer)
    table = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert read_ibq(tmp_path, table).fingerprint == tokenizer.fingerprint


def test_an_architecture_that_emu35_has_not_is_named():
    config = VisionTokenizerConfig(base_channels=32, codebook_size=64)
    with pytest.raises(ValueError, match=r"quantizer 'vq'.*spatial_norm True.*temporal_factor 4"):
        ibq_settings(config)


def test_ordered_pairs_of_marks_are_neighbours_in_the_vocabulary():
    controls = small_vocabulary(500, 64, EXTRA_CONTROLS).controls
    names = ("boc", "eoc"), ("bog", "eog"), ("bss", "ess")
    assert all(controls[other] == controls[one] + 1 for one, other in names)
    assert [other - one for one, other in pairwise(controls[name] for name in ("boc", "bog", "bss"))] == [10, 40]
