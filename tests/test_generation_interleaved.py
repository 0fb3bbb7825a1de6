"""Documents of text and blocks, and blocks of modalities that the engine has never heard of."""

import pytest
import torch

from emu.documents import CodeSegment, TextSegment
from emu.generation import Batcher, DocumentTextRequest, Engine, GridRequest, Sampling
from emu.generation.interleaved import next_piece
from emu.layouts import FREE, BlockTemplate, Cursor, Emu3Layout, Emu35Layout
from emu.modalities import Modality, register
from emu.model import EmuConfig, EmuForCausalLM
from emu.vocabulary import Vocabulary


class Melody(Modality):
    """A made-up modality: notes of two codebooks in turn after a forced opening, a forced mark between bars of two."""

    name, rank, codebook = "tune", 1, "note"

    def accepts(self, value):
        return False

    def encode(self, value, codec):
        raise NotImplementedError

    def decode(self, segment, codec):
        raise NotImplementedError

    def meta_text(self, grid, meta):
        return f"n{grid[0]}"

    def parse_meta(self, text):
        return ((int(text[1:]),), {}) if text[:1] == "n" and text[1:].isdigit() and int(text[1:]) else None

    def codebook_sizes(self, codec):
        return (5, 9)

    def block(self, layout, grid):
        controls, spans = layout.vocabulary.controls, layout.code_ranges(self.codebook)
        slots = [(controls["eol"], 0, 0), (controls["eof"], 0, 0)]
        for note in range(grid[0]):
            slots += [(FREE, *spans[0]), (FREE, *spans[1])]
            slots += [(controls["eol"], 0, 0)] * (note % 2)
        slots.append((controls["eoi"], 0, 0))
        forced, first, count = torch.tensor(slots).T
        return BlockTemplate(forced, first, count, (grid[0], 2))


register("tune", Melody())
VOCABULARY = Vocabulary.build(20, {"vision": 24, "note.0": 5, "note.1": 9})
CONTROLS = VOCABULARY.controls


class Letters:
    letters = "0123456789* fps.nabc"

    def encode(self, text):
        return [self.letters.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(self.letters[index] for index in ids)


def engine_of(kind=Emu3Layout, likely=(), **options) -> Engine:
    """`likely` names controls whose logits are scaled up."""
    torch.manual_seed(5)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "rope_theta": 100.0,
    }
    model = EmuForCausalLM(EmuConfig(vocab_size=VOCABULARY.size, initializer_range=0.3, **sizes)).eval()
    with torch.no_grad():
        for name in likely:
            model.lm_head.weight[CONTROLS[name]] *= 2.5
    layout = kind(VOCABULARY, Letters(), ["image", "video", "tune"])
    return Engine(model, layout, **options)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_made_up_modality_is_generated_from_its_template_alone(guidance):
    engine = engine_of()
    layout = engine.layout
    prompts = [torch.tensor([CONTROLS["bos"], *text, *layout.header("tune", (5,))]) for text in ([], [1, 2, 3])]
    heard = []
    codes = engine.generate_codes(
        prompts, grid=(5,), guidance_scale=guidance, on_row=lambda row, part: heard.append(part)
    )
    assert codes.shape == (2, 5, 2) and int(codes[..., 0].max()) < 5 and int(codes[..., 1].max()) < 9
    assert engine.last_stats.passes == 10
    assert len(heard) == 1 and torch.equal(heard[0], codes)
    for ids, one in zip(prompts, codes, strict=True):
        last = layout.parse(torch.cat([ids, layout.block("tune", (5,)).fill(one)]))[-1]
        assert last.modality == "tune" and torch.equal(last.codes, one)
    begun = engine.generate_codes(prompts, grid=(5,), guidance_scale=guidance, prefix_codes=codes[:, :3])
    assert torch.equal(begun, codes)


def assemble(layout, prompt, segments):
    """The ids of a document that was generated after a prompt."""
    return torch.cat([prompt, *(layout.build([segment], add_special=False).ids for segment in segments)])


@pytest.mark.parametrize("kind", [Emu3Layout, Emu35Layout])
def test_what_is_written_obeys_the_grammar(kind):
    engine = engine_of(kind, likely=("boi",))
    layout = engine.layout
    headers = [
        layout.header("image", (2, 3)),
        layout.header("tune", (3,)),
        layout.header("video", (1, 2, 2), {"frames": 4, "fps": 8}),
    ]
    prompt = torch.tensor([CONTROLS["bos"], 3, 4])
    total = 0
    for seed in range(8):
        segments = list(engine.generate(prompt, headers=headers, max_text_tokens=25, max_blocks=3, seed=seed))
        blocks = [segment for segment in segments if isinstance(segment, CodeSegment)]
        assert len(blocks) <= 3
        assert sum(len(segment.ids) for segment in segments if isinstance(segment, TextSegment)) <= 25
        ids = assemble(layout, prompt, segments)
        cursor = Cursor(layout, headers)
        for index in ids.tolist():
            cursor.advance(index)  # raises where the grammar is broken
        found = [segment for segment in layout.parse(ids) if isinstance(segment, CodeSegment)]
        assert all(torch.equal(one.codes, other.codes) for one, other in zip(found, blocks, strict=True))
        total += len(blocks)
    assert total > 4


def test_the_same_seed_writes_the_same_document():
    engine = engine_of(likely=("boi",))
    prompt = torch.tensor([CONTROLS["bos"], 3])
    headers = [engine.layout.header("image", (2, 3))]

    def written(**keys):
        return assemble(
            engine.layout, prompt, engine.generate(prompt, headers=headers, max_text_tokens=12, **keys)
        ).tolist()

    assert written(seed=1) == written(seed=1)
    assert written(seed=1) != written(seed=2) and written(seed=1) != written(seed=1, stream=1)


def pieces_in(batcher, writer):
    """Segments of a document whose requests run in a batch; None while one of them does."""
    work, outcome = writer.work(), None
    while (item := next_piece(work, outcome)) is not None:
        outcome = None
        if isinstance(item, (GridRequest, DocumentTextRequest)):
            ticket = batcher.submit(item)
            while not ticket.done:
                yield None
            outcome = ticket.result()
        else:
            yield item


def test_documents_beside_each_other_are_those_that_are_written_alone():
    engine = engine_of(likely=("boi",), deterministic=True)
    options = {"headers": [engine.layout.header("image", (2, 3)), engine.layout.header("tune", (3,))]}
    options |= {"max_text_tokens": 12, "codes": Sampling(2.0, 1.0)}
    prompts = [torch.tensor([CONTROLS["bos"], *text]) for text in ([3], [4, 5], [3, 4, 5, 6], [3])]
    alone = [list(engine.generate(ids, seed=seed, **options)) for seed, ids in enumerate(prompts)]
    batcher, found = Batcher(engine, slots=3), [[] for _ in prompts]
    running = [pieces_in(batcher, engine.writer(ids, seed=seed, **options)) for seed, ids in enumerate(prompts)]
    most = 0
    while any(one is not None for one in running):
        for number, one in enumerate(running):
            if one is not None:
                try:
                    if (segment := next(one)) is not None:
                        found[number].append(segment)
                except StopIteration:
                    running[number] = None
        batcher.step()
        most = max(most, batcher.running)
    assert most == 3 and sum(map(len, found)) > 6
    for ids, own, other in zip(prompts, alone, found, strict=True):
        assert torch.equal(assemble(engine.layout, ids, own), assemble(engine.layout, ids, other))


def test_a_prompt_that_ends_in_a_header_begins_with_its_block():
    engine = engine_of()
    prompt = torch.tensor([CONTROLS["bos"], 3, *engine.layout.header("image", (2, 3))])
    (first, *_) = engine.generate(prompt, max_text_tokens=3, codes=Sampling(3.0, 1.0), seed=4)
    expected = engine.generate_codes([prompt], grid=(2, 3), top_k=0, seed=4)[0]
    assert first.modality == "image" and torch.equal(first.codes, expected)


@torch.no_grad()
def test_greedy_text_around_blocks_equals_a_plain_loop():
    engine = engine_of(likely=("boi",))
    layout, model, header = engine.layout, engine.model, engine.layout.header("image", (2, 2))
    prompt = torch.tensor([CONTROLS["bos"], 3, 4, 5])
    greedy = Sampling(1.0, 0.0)
    segments = list(
        engine.generate(prompt, headers=[header], text=greedy, codes=greedy, max_text_tokens=10, max_blocks=2)
    )
    ids, budget, blocks = prompt.tolist(), 10, 2
    while True:
        allowed = layout.constrain(ids, [header])
        if blocks == 0:
            allowed = [span for span in allowed if span != (CONTROLS["boi"], 1)]
        choices = [index for first, count in allowed for index in range(first, first + count)]
        if len(choices) > 1:
            if budget == 0 and len(choices) != 24:
                break
            budget -= len(choices) != 24
            logits = model(torch.tensor([ids])).logits[0, -1]
            choices = [choices[int(logits[choices].argmax())]]
        if choices[0] == CONTROLS["eos"]:
            break
        blocks -= choices[0] == CONTROLS["boi"]
        ids.append(choices[0])
    assert assemble(layout, prompt, segments).tolist() == ids


@pytest.mark.parametrize(
    "ids, words",
    [
        ([3, 4], "cannot stand here"),
        ([CONTROLS["bos"], CONTROLS["eos"]], "ends after EOS"),
        ([CONTROLS["bos"], CONTROLS["boi"], 2], "within a header"),
    ],
)
def test_prompts_that_end_nowhere_are_refused_at_once(ids, words):
    with pytest.raises(ValueError, match=words):
        engine_of().generate(torch.tensor(ids))
