"""Bits that prompts leave free: of every picture that can be, of the engine's draws, and of worlds whose pictures can be listed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emu.documents import CodeSegment, TextSegment
from emu.evaluation.statistics import chi_square
from emu.evaluation.suites import Unsuited
from emu.evaluation.suites import guidance as suite_module
from emu.evaluation.suites.guidance import GuidanceSubject, GuidanceSuite, pair_measures, read_scales
from emu.evaluation.suites.training_examples import EXAMPLES
from emu.evaluation.variety import Prompts, attribute_entropies, bits_of, draw, exact_points, negatives_of
from emu.generation import Engine, Sampling
from emu.worlds import shapes
from emu.worlds.patch_tokenizer import fit_tokenizer
from emu.worlds.scene_documents import WorldDocuments
from tests.test_evaluation_models import tiny_model

SAMPLINGS = [Sampling(), Sampling(1.5, 2.0), Sampling(1.5, 2.0, top_k=5), Sampling(1.5, 2.0, top_p=0.8)]


@pytest.fixture(scope="module")
def engine(request):
    emu = request.getfixturevalue("tiny_emu")
    return Engine(emu.model, emu.tokenizer.layout)


def prompts(engine, count, grid=(1, 2)):
    layout = engine.layout
    words = [TextSegment(torch.tensor(layout.encode_text(text))) for text in ("a red circle", "a ball")]
    codes = CodeSegment("image", torch.zeros(grid, dtype=torch.int64))
    return Prompts.of(layout, [layout.build([words[i % 2], codes]) for i in range(count)])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_probabilities_of_all_pictures_sum_to_one(engine, sampling):
    every = torch.cartesian_prod(torch.arange(16), torch.arange(16))[:, None]  # (256, 1, 2)
    bits = bits_of(engine, prompts(engine, 1).ids * 256, every, (1, 2), sampling)
    odds = np.exp2(-bits)
    # With candidates cut, a code that the sampler leaves out counts as one more candidate where it is asked about.
    is_whole = not sampling.top_k and sampling.top_p == 1
    assert odds.sum() == pytest.approx(1, abs=1e-4) if is_whole else odds.sum() > 1 - 1e-4


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_engine_draws_pictures_as_often_as_their_bits_say(engine, sampling):
    some = prompts(engine, 1, (1, 1))
    same = Prompts(some.ids * 320, some.grid, some.captions * 320)
    codes, bits = draw(engine, same, sampling)
    odds = np.zeros(16)
    odds[codes.flatten().numpy()] = np.exp2(-bits)
    counts = np.bincount(codes.flatten(), minlength=16)
    often = odds * 320 >= 5
    # What is expected too rarely for the test is one value together with what was never drawn.
    rest = 1 - odds[often].sum()
    assert often.sum() > 1 and rest > -1e-4
    if rest * 320 < 5:
        found, truth = counts[often], odds[often] / odds[often].sum()
    else:
        found, truth = np.append(counts[often], counts[~often].sum()), np.append(odds[often], rest)
    assert chi_square(found, truth).p_value > 1e-4


def test_bits_without_guidance_are_those_of_the_logits(engine):
    some = prompts(engine, 6)
    codes, bits = draw(engine, some, Sampling())
    again, same = draw(engine, some, Sampling())
    assert torch.equal(codes, again) and (bits == same).all()  # scores repeat for a seed
    first, count = engine.layout.code_ranges("vision")[0]
    for prompt, grid, found in zip(some.ids, codes, bits, strict=True):
        block = engine.layout.block("image", (1, 2)).fill(grid)
        logits = engine.model(torch.cat([prompt, block])[None]).logits[0].detach().double()
        expected = 0.0
        for place, code in zip((0, 1), grid.flatten().tolist(), strict=True):
            row = logits[len(prompt) - 1 + place, first : first + count].log_softmax(-1)
            expected -= float(row[code]) / np.log(2)
        assert found == pytest.approx(expected, abs=1e-4)


def test_prompts_end_in_their_header_and_say_what_they_said(engine):
    some = prompts(engine, 2)
    assert some.captions == ["a red circle", "a ball"] and some.grid == (1, 2)
    assert all(engine.layout.own_header(ids) is not None for ids in some.ids)
    assert all(len(negative) < len(ids) for negative, ids in zip(negatives_of(engine, some.ids), some.ids, strict=True))


def test_a_world_of_one_object_is_listed_and_its_truth_is_known(monkeypatch):
    world = shapes(1)
    documents = WorldDocuments(world, fit_tokenizer([world]))
    untrained = Engine(tiny_model(documents.tokenizer.vocabulary), documents.tokenizer.layout)
    captions = np.unique(world.draw(0, 20, rules=["plain"]).values("caption"))[:2]
    (point,) = exact_points(untrained, documents, captions, [Sampling(1.0)])
    # Sixteen places, and large in three of ten.
    assert point.truth == pytest.approx(4 - 0.3 * np.log2(0.3) - 0.7 * np.log2(0.7))
    assert 0 < point.right.value < 1e-6 and 0 < point.bits.value <= 5
    assert point.bits.interval.low == point.bits.interval.high  # nothing is drawn
    monkeypatch.setattr("emu.evaluation.variety.bits_of", lambda engine, ids, *_: np.full(len(ids), 2000.0))
    (point,) = exact_points(untrained, documents, captions, [Sampling(1.0)])
    assert point.right.value == 0 and point.bits.value == pytest.approx(
        5
    )  # of 32 pictures, all of them next to impossible


def test_entropy_is_a_mean_over_prompts_so_that_collapse_is_seen():
    prompts_of, rng = np.repeat(np.arange(8), 400), np.random.default_rng(0)
    free = rng.integers(0, 16, 3200)
    assert attribute_entropies(free, prompts_of) == pytest.approx(np.full(8, 4.0), abs=0.06)
    assert not attribute_entropies(prompts_of % 16, prompts_of).any()
    assert not attribute_entropies(np.full(3200, -1), prompts_of).any()


@pytest.mark.slow
def test_two_objects_are_drawn_and_the_entropy_of_their_places_stands_beside_the_truth(monkeypatch):
    world = shapes(2)
    documents = WorldDocuments(world, fit_tokenizer([world]))
    model = tiny_model(documents.tokenizer.vocabulary)
    subject = GuidanceSubject(SimpleNamespace(model=model, tokenizer=documents.tokenizer), None, (1.0,), 40, 0)

    class Exact:
        """Draws from the true law."""

        def __init__(self, engine, documents, scale):
            self.world, self.scale, self.rng = documents.world, scale, np.random.default_rng(0)

        def __call__(self, task, captions, seed):
            table, found = self.world.table("picture", "caption"), np.zeros(len(captions), int)
            for caption in np.unique(captions):
                pictures, odds = table.outcomes(caption)
                found[captions == caption] = self.rng.choice(pictures, (captions == caption).sum(), p=odds)
            return found

    untrained = pair_measures(subject, documents, each=4)
    assert untrained["right, two objects/guidance 1"].value == 0
    monkeypatch.setattr(suite_module, "ModelSample", Exact)
    exact = pair_measures(subject, documents)
    assert exact["right, two objects/guidance 1"].value == 1
    assert 0.97 < exact["free places, share of the truth, two objects/guidance 1"].value < 1.02


class Graded:
    """Pictures that are right where their first code is even."""

    tasks = ("text_to_image",)

    def __init__(self, tokenizer):
        self.layout = tokenizer.layout

    def documents(self, task, part, limit=None):
        words = TextSegment(torch.tensor(self.layout.encode_text("a ball")))
        return [self.layout.build([words, CodeSegment("image", torch.full((1, 2), i))]) for i in range(16)][:limit]

    def grade(self, captions, pixels):
        assert pixels.shape[1:] == (4, 8, 3) and set(captions) == {"a ball"}
        return pixels.mean(axis=(1, 2, 3)) > 100


def test_the_report_has_a_point_for_each_scale_and_the_bits_of_real_pictures(tiny_emu):
    subject = GuidanceSubject(tiny_emu, Graded(tiny_emu.tokenizer), (1.0, 4.0), 40, 0)
    lines = []
    report = GuidanceSuite().run(subject, lines.append)
    figures = report.figures
    assert list(figures) == ["right/guidance 1", "free bits/guidance 1", "right/guidance 4", "free bits/guidance 4"]
    assert figures["free bits/guidance 4"] < figures["free bits/guidance 1"] < 8.5 < report.table["held_out_bits"] + 8
    assert report.picture.startswith(b"\x89PNG") and "dashed" in report.note and len(lines) == 2


def test_scales_and_models_that_cannot_be_measured_are_refused(tiny_emu, tmp_path):
    assert read_scales("1,2.5") == [1.0, 2.5]
    for words in ("1,much", "1,1", "-2", "nan", ""):
        with pytest.raises(ValueError, match="--scales is"):
            read_scales(words)
    tiny_emu.save_pretrained(tmp_path / "model")
    asked = {"model": str(tmp_path / "model"), "samples": 40, "scales": "1", "seed": 0, "train": None, "held_out": None}
    EXAMPLES.register("ungraded", lambda tokenizer: SimpleNamespace(tasks=("text_to_image",)))
    try:
        with pytest.raises(Unsuited, match="nobody knows which of its pictures are right"):
            GuidanceSuite().prepare(SimpleNamespace(**asked, examples="ungraded"))
    finally:
        EXAMPLES.unregister("ungraded")
