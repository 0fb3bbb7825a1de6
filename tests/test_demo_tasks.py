"""The demo's training documents."""

import pytest
import torch

from emu import MultimodalTokenizer, VisionTokenizer, VisionTokenizerConfig
from emu.data import pack
from emu.demo.data import DOCUMENTS_PER_STEP, DigitBatches, DigitsPixels
from emu.demo.digits import CANVAS, FRAMES, load_digits
from emu.demo.run import train_text
from emu.demo.tasks import TASKS, encode_digits
from emu.documents import CodeSegment, TextSegment

ROW_LENGTH = 256


@pytest.fixture(scope="module")
def sources():
    config = VisionTokenizerConfig(
        spatial_factor=8,
        base_channels=4,
        channel_multiplier=(1, 1),
        num_res_blocks=1,
        attn_resolutions=(),
        latent_channels=4,
        embed_dim=4,
        codebook_size=64,
    )
    torch.manual_seed(0)
    tokenizer = MultimodalTokenizer(train_text(), VisionTokenizer(config).eval())
    encoded = encode_digits(tokenizer.vision, load_digits()[0].first(6), seed=0)
    return {name: task(encoded, tokenizer) for name, task in TASKS.items()}


def parsed(source, index, key):
    document = source.document(index, key)
    return document, source.tokenizer.layout.parse(document.ids)


def test_the_recipe_draws_from_every_task():
    assert set(DOCUMENTS_PER_STEP) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_documents_are_pure_functions_of_index_and_key_and_parse(sources, name):
    source = sources[name]
    for index in (0, len(source) - 1):
        for key in range(30):
            document, segments = parsed(source, index, key)
            again = source.document(index, key)
            assert torch.equal(document.ids, again.ids) and torch.equal(document.weights, again.weights)
            assert len(document) <= source.max_length <= ROW_LENGTH
            assert sum(isinstance(segment, CodeSegment) for segment in segments) == 1
            assert document.weights[0] == 0 and document.weights.sum() > 0


@pytest.mark.parametrize("name", [name for name in TASKS if name != "video_continuation"])
def test_keys_vary_the_documents(sources, name):
    assert len({tuple(sources[name].document(0, key).ids.tolist()) for key in range(30)}) > 1


def test_a_caption_is_left_out_now_and_then(sources):
    with_words = [len(parsed(sources["text_to_image"], 0, key)[1]) for key in range(200)]
    assert 5 <= with_words.count(1) <= 40


def test_only_the_answer_and_the_end_count_as_text_of_a_picture(sources):
    document, segments = parsed(sources["image_to_text"], 0, 3)
    words = sources["image_to_text"].tokenizer.decode_segment(segments[-1])
    assert isinstance(segments[-1], TextSegment) and words.startswith(("Which digit is it?", "Describe it."))
    counted = document.ids[document.weights == 1.0]
    layout = sources["image_to_text"].tokenizer.layout
    assert counted[-1] == layout.vocabulary.control("eos")
    assert words.endswith(layout.decode_text(counted[:-1].tolist()))


@pytest.mark.parametrize(("name", "weight"), [("video_continuation", 0.3), ("image_to_video", 0.0)])
def test_the_beginning_of_a_continued_clip_counts_less(sources, name, weight):
    source = sources[name]
    document, _ = parsed(source, 5, 1)
    first, count = source.tokenizer.vocabulary.ranges["vision"]
    codes = document.weights[(document.ids >= first) & (document.ids < first + count)]
    half = len(codes) // 2
    assert torch.allclose(codes[:half], torch.tensor(weight)) and (codes[half:] == 1).all()


def test_a_clip_at_rest_begins_with_the_codes_of_its_picture(sources):
    digits = sources["image_to_video"].digits
    stills = {tuple(codes.flatten().tolist()) for codes in digits.stills[:, 2]}
    for way in range(4):
        assert tuple(digits.resting[way, 2, 0].flatten().tolist()) in stills


def test_documents_of_all_tasks_pack_into_rows_of_the_recipe(sources):
    documents = [source.document(index, index) for source in sources.values() for index in range(len(source))]
    packed = pack(documents, ROW_LENGTH)
    assert int((packed.segment_ids > 0).sum()) == sum(map(len, documents))


def test_batches_of_pixels_are_functions_of_their_step():
    loader = DigitBatches(DigitsPixels(images=3, clips=2), length=2, seed=1)
    first = list(loader)
    assert first[0]["image"].shape == (3, 3, CANVAS, CANVAS)
    assert first[0]["video"].shape == (2, FRAMES, 3, CANVAS, CANVAS)
    resumed = DigitBatches(DigitsPixels(images=3, clips=2), length=2, seed=1)
    resumed.load_state_dict({**resumed.state_dict(), "step": 1})
    (batch,) = resumed
    assert all(torch.equal(batch[name], first[1][name]) for name in batch)


def test_a_run_goes_on_to_more_steps_but_not_in_other_batches():
    state = {"step": 2, "seed": 1, "images": 3, "clips": 2, "digits": 1347}
    longer = DigitBatches(DigitsPixels(images=3, clips=2), length=5, seed=1)
    longer.load_state_dict(state)
    assert len(list(longer)) == 3 and longer.state_dict() == {**state, "step": 5}
    with pytest.raises(ValueError, match="images was 3 and is 4"):
        DigitBatches(DigitsPixels(images=4, clips=2), length=5, seed=1).load_state_dict(state)


def test_ranks_share_the_samples_of_a_step():
    data = DigitsPixels(images=4, clips=4)
    whole = data.draw(0, 7, {"image": range(4), "video": range(4)})
    for rank in (0, 1):
        share = data.draw(0, 7, {"image": range(rank, 4, 2), "video": range(rank, 4, 2)})
        assert all(torch.equal(share[kind], whole[kind][rank::2]) for kind in whole)
