"""What people copy, pickle and send to workers survives it, before and after it was used."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from emu import Emu, Emu35Layout, MultimodalTokenizer, Text, Video
from emu.documents import Plan
from emu.generation import Engine, Sampling
from emu.modalities import MODALITIES
from emu.templates import Templates

WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
PICTURE = Image.fromarray(np.full((8, 8, 3), 100, np.uint8))


@pytest.fixture(params=["before use", "after use"])
def own(request, tiny_emu):
    emu = Emu(copy.deepcopy(tiny_emu.model), copy.deepcopy(tiny_emu.tokenizer), tiny_emu.defaults)
    if request.param == "after use":
        use(emu)
    return emu


def use(emu):
    """Codes, text and pixels that depend on every part of an `Emu`."""
    pictures = emu.generate_images(["a ball", "a red circle"], seed=4, deterministic=True)
    clip = emu.generate_videos("a ball", first_frames=PICTURE, deterministic=True)[0]
    text = emu.generate_text([[PICTURE, "a"]], max_new_tokens=4)
    return (
        [result.codes.tolist() for result in (*pictures, clip)],
        text,
        pictures[0].image.tobytes(),
        pictures[0].settings,
    )


@pytest.mark.parametrize("way", list(WAYS))
def test_an_emu_does_the_same_after_it(way, own):
    assert use(WAYS[way](own)) == use(own)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_of_a_used_emu_has_weights_of_its_own(way, tiny_emu):
    own = Emu(copy.deepcopy(tiny_emu.model), tiny_emu.tokenizer, tiny_emu.defaults)
    before = use(own)
    other = WAYS[way](own)
    other.model.lm_head.weight.data.neg_()
    assert use(other) != before and use(own) == before


@pytest.mark.parametrize("way", list(WAYS))
def test_an_engine_does_the_same_after_it(way, tiny_emu):
    engine = Engine(tiny_emu.model, tiny_emu.tokenizer.layout)
    prompt = tiny_emu.tokenizer.prompt(["a ball"], "image", (2, 2))
    first = engine.generate_codes([prompt], grid=(2, 2), seed=1)
    other = WAYS[way](engine)
    assert torch.equal(other.generate_codes([prompt], grid=(2, 2), seed=1), first)
    assert other.last_stats.tokens == engine.last_stats.tokens


@pytest.mark.parametrize("way", list(WAYS))
def test_tokenizers_layouts_and_vocabularies_do_the_same_after_it(way, tiny_emu):
    document = ["a ball", PICTURE, Video([PICTURE] * 5, 4)]
    joined = tiny_emu.tokenizer
    released = MultimodalTokenizer(joined.text, joined.vision, templates=Templates())
    newer = MultimodalTokenizer(joined.text, joined.vision, layout="emu3.5")
    for tokenizer in (joined, released, newer):
        ids = tokenizer.encode(document)
        other = WAYS[way](tokenizer)
        assert torch.equal(other.encode(document), ids) and other.fingerprints == tokenizer.fingerprints
        assert other.decode(ids)[0] == "a ball"
        layout = WAYS[way](tokenizer.layout)
        assert [type(segment) for segment in layout.parse(ids)] == [
            type(segment) for segment in tokenizer.layout.parse(ids)
        ]
        assert torch.equal(layout.block("image", (2, 3)).forced, tokenizer.layout.block("image", (2, 3)).forced)
        assert WAYS[way](tokenizer.vocabulary) == tokenizer.vocabulary
    assert WAYS[way](joined.text).encode("a red") == joined.text.encode("a red")
    assert WAYS[way](joined.vision).fingerprint == joined.vision.fingerprint
    assert isinstance(WAYS[way](newer.layout), Emu35Layout)


@pytest.mark.parametrize("way", list(WAYS))
def test_values_and_settings_are_equal_after_it(way, tiny_emu):
    (picture,), (clip,) = tiny_emu.generate_images("a ball"), tiny_emu.generate_videos("a ball")
    for result in (picture, clip):
        other = WAYS[way](result)
        assert torch.equal(other.codes, result.codes) and other.about == result.about
    for value in (Text("a", 0.5), tiny_emu.defaults, tiny_emu.trained, Sampling(2.0), tiny_emu.model.config.to_dict()):
        assert WAYS[way](value) == value
    plan = WAYS[way](Plan("first", "image"))
    assert (plan, plan.scope) == ("first", "image")
    video = Video([PICTURE] * 2, 4)
    assert np.array_equal(WAYS[way](video).frames, video.frames) and WAYS[way](video).fps == 4
    ours = {name: modality for name, modality in MODALITIES.items() if type(modality).__module__.startswith("emu.")}
    assert {"image", "video"} <= set(
        ours
    )  # those that other tests register live in functions, which pickle cannot name
    for name, modality in ours.items():
        other = WAYS[way](modality)
        assert other.name == name and type(other) is type(modality)


@pytest.mark.parametrize("way", list(WAYS))
def test_data_modules_give_the_same_batches_after_it(way):
    pytest.importorskip("sklearn")
    from emu.demo.data import DigitsData, DigitsPixels

    data = DigitsData(documents_per_step={"text_to_image": 4}, num_digits=2)
    unused = WAYS[way](data)
    first = next(iter(data.train_dataloader()))
    for module in (unused, WAYS[way](data)):
        found = next(iter(module.train_dataloader()))
        assert all(torch.equal(one, other) for one, other in zip(first, found, strict=True))
    assert len(WAYS[way](DigitsPixels(images=2)).val_dataloader()) > 0


def drawn_elsewhere(emu, tokenizer, results):
    """What a worker process makes of what it was sent."""
    return use(emu), tokenizer.encode(["a ball", PICTURE]).tolist(), [result.codes.tolist() for result in results]


@pytest.mark.slow
def test_a_spawned_process_draws_the_same(own):
    results = own.generate_images("a ball")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(drawn_elsewhere, (own, own.tokenizer, results))
    assert found == drawn_elsewhere(own, own.tokenizer, results)
