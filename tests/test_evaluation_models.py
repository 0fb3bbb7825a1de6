"""Real tokenizers, documents and a small transformer between the worlds and the harness."""

import re
from argparse import Namespace

import numpy as np
import pytest
import torch

from emu.evaluation.models import ModelSample, ModelScore, document_bits
from emu.evaluation.suites import SUITES, worlds
from emu.evaluation.suites.calibration import check_samples
from emu.evaluation.suites.worlds import SuiteOptions, WorldModel
from emu.model import EmuConfig, EmuForCausalLM
from emu.worlds import HELD_OUT, World, moving, shapes, standard_worlds
from emu.worlds.patch_tokenizer import fit_patches, fit_tokenizer
from emu.worlds.scene_codes import collisions, decode, encode, picture_codes
from emu.worlds.scene_documents import WorldDocuments
from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig


@pytest.fixture(scope="module")
def tokenizer():
    return fit_tokenizer(list(standard_worlds().values()))


@pytest.fixture(scope="module")
def all_documents(tokenizer):
    return {name: WorldDocuments(world, tokenizer) for name, world in standard_worlds().items()}


def tiny_model(vocabulary):
    torch.manual_seed(0)
    return EmuForCausalLM(
        EmuConfig(
            vocab_size=vocabulary.size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            pad_token_id=vocabulary.controls["pad"],
            bos_token_id=vocabulary.controls["bos"],
            eos_token_id=vocabulary.controls["eos"],
            vocabulary=vocabulary.to_dict(),
        )
    ).eval()


class Oracle:
    """An engine that answers every prompt with a true document's target."""

    def __init__(self, documents, task, draws):
        self.documents, self.task, self.draws, self.place = documents, task, draws, 0

    def _next(self, count):
        draws = self.draws[self.place : self.place + count]
        self.place += count
        target = self.documents.world.task(self.task).target
        return self.documents.segments(target, draws.values(target))

    def generate_codes(self, prompts, negative_ids, grid, **options):
        assert options["modality"] and len(options["seed"]) == len(prompts)
        return torch.stack([segment.codes for segment in self._next(len(prompts))])

    def generate_text(self, prompts, **options):
        return [segment.ids for segment in self._next(len(prompts))]


def questions():
    return [(name, task) for name, world in standard_worlds().items() for task in world.tasks]


def test_patch_codes_keep_every_scene_apart(all_documents):
    for documents in all_documents.values():
        documents.check_distinct()


def test_patch_codes_lose_nothing_and_know_no_neighbours(tokenizer):
    for world in (shapes(1), shapes(2), moving()):
        draws = world.draw(0, 50)
        pictures = world.render(draws.rows)
        codes = encode(tokenizer.vision, pictures)
        assert np.abs(decode(tokenizer.vision, codes).astype(int) - pictures).max() <= 1
    cells = shapes(2).cells[shapes(2).draw(0, 300).rows]
    codes = encode(tokenizer.vision, shapes(2).render(shapes(2).draw(0, 300).rows)).flatten(1).numpy()
    assert len({(kind, code) for kind, code in zip(cells.ravel(), codes.ravel(), strict=True)}) == len(np.unique(cells))


def test_codes_of_colour_channels_spell_kinds_that_were_never_seen():
    worlds = standard_worlds(unseen_kinds=True)
    tokenizer = fit_tokenizer(list(worlds.values()), codebook_size=32, per_channel=True)
    for world in (worlds["one"], worlds["two"]):
        documents = WorldDocuments(world, tokenizer)
        documents.check_distinct()
        rows = np.flatnonzero(world.held_out)[::97]
        codes = documents.codes("picture", rows)
        assert codes.shape == (len(rows), 4, 4, 3)
        known = documents.codes("picture", np.flatnonzero(~world.held_out))
        for channel in range(3):
            assert np.isin(codes[..., channel], known[..., channel]).all()
        assert (world.grade(documents.pixels(codes)) == rows).all()


def test_larger_pictures_have_larger_grids():
    world = shapes(1)
    draws = world.draw(0, 60)
    pictures = world.render(draws.rows, 64)
    vision = fit_patches(torch.from_numpy(pictures).movedim(-1, 1).float() / 127.5 - 1, 256)
    codes = encode(vision, pictures)
    assert codes.shape == (60, 8, 8)
    np.testing.assert_array_equal(world.grade(decode(vision, codes)), draws.rows)


def test_more_patches_than_codes_are_clustered():
    pictures = torch.from_numpy(shapes(1).render(np.arange(0, 768, 7))).movedim(-1, 1).float() / 127.5 - 1
    vision = fit_patches(pictures, 12)
    codes = vision.encode(pictures)
    assert codes.unique().numel() <= 12 and vision.codebook_sizes == (12,)
    assert (vision.decode(codes) - pictures).square().mean() < pictures.var() / 2


def test_a_fitted_tokenizer_survives_its_folder(tokenizer, tmp_path):
    tokenizer.vision.save_pretrained(tmp_path)
    again = VisionTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == tokenizer.vision.fingerprint
    pictures = shapes(2).render(shapes(2).draw(3, 20).rows)
    assert torch.equal(encode(again, pictures), encode(tokenizer.vision, pictures))


def test_a_tokenizer_that_sees_neighbours_encodes_every_scene():
    torch.manual_seed(0)
    config = VisionTokenizerConfig(
        spatial_factor=8, temporal_factor=1, codebook_size=32, embed_dim=4, latent_channels=4, base_channels=8, channel_multiplier=(1,),
        num_res_blocks=1, attn_resolutions=(), norm_groups=2,
    )  # fmt: skip
    vision, world = VisionTokenizer(config).eval(), shapes(1)
    found = picture_codes(world, vision, 32)
    assert torch.equal(found, encode(vision, world.render(np.arange(768))))
    assert collisions(found) > 0


@pytest.mark.parametrize(("name", "task"), questions())
def test_documents_parse_and_weigh_their_target_alone(all_documents, name, task):
    documents = all_documents[name]
    draws = documents.world.draw(0, 20)
    question, layout = documents.world.task(task), documents.tokenizer.layout
    prompts = documents.prompts(task, draws.values(question.given))
    for i, document in enumerate(documents.documents(task, draws)):
        assert len(document) <= documents.max_length(task)
        layout.parse(document.ids)
        weighed = document.ids[document.weights > 0]
        assert set(document.weights.tolist()) <= {0.0, 1.0}
        if task == "continuation":
            assert len(weighed) == documents.header("clip")[1][0] // 2 * 16
        elif question.target == "caption":
            assert layout.decode_text(weighed[:-1].tolist()) == draws.captions[i]
            assert torch.equal(document.ids[: len(prompts[i])], prompts[i])
        else:
            codes = documents.segments(question.target, draws.values(question.target))[i].codes
            assert len(weighed) == codes.numel()
            assert torch.equal(document.ids[: len(prompts[i])], prompts[i])


def test_documents_without_prompt_show_the_target_alone(all_documents):
    documents = all_documents["one"]
    draws = documents.world.draw(0, 2)
    with_prompt, without = documents.documents("text-to-image", draws, without_prompt=np.array([False, True]))
    assert len(documents.tokenizer.layout.parse(with_prompt.ids)) == 2
    assert len(documents.tokenizer.layout.parse(without.ids)) == 1


def test_prompts_can_teach_too(all_documents):
    for name, task, codes in (
        ("one", "image-to-text", 16),
        ("moving", "continuation", 32),
        ("two", "boxes-to-image", 8),
    ):
        draws = all_documents[name].world.draw(0, 1)
        (plain,) = all_documents[name].documents(task, draws)
        (taught,) = all_documents[name].documents(task, draws, prompt_weight=0.5)
        assert (taught.weights - plain.weights).sum() == pytest.approx(codes / 2)
        assert (taught.weights[plain.weights > 0] == plain.weights[plain.weights > 0]).all()


@pytest.mark.parametrize(("name", "task"), questions())
def test_true_answers_are_read_as_themselves(all_documents, name, task):
    documents = all_documents[name]
    draws = documents.world.draw(0, 40)
    question = documents.world.task(task)
    sample = ModelSample(Oracle(documents, task, draws), documents, batch_size=16)
    np.testing.assert_array_equal(sample(task, draws.values(question.given), 0), draws.values(question.target))


def test_bits_are_the_same_packed_and_alone_and_by_hand(all_documents):
    documents = all_documents["two"]
    model = tiny_model(documents.tokenizer.vocabulary)
    some = documents.documents("image-to-text", documents.world.draw(0, 12))
    together = document_bits(model, some, row_length=128)
    alone = [document_bits(model, [one])[0] for one in some]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    with torch.no_grad():
        odds = model(input_ids=some[0].ids[None]).logits[0].double().log_softmax(-1)
    by_hand = -(odds[:-1].gather(1, some[0].ids[1:, None])[:, 0] * some[0].weights[1:]).sum() / np.log(2)
    assert together[0] == pytest.approx(float(by_hand), abs=1e-3)


def test_an_untrained_model_spends_about_the_width_of_the_vocabulary(all_documents):
    documents = all_documents["moving"]
    bits = ModelScore(tiny_model(documents.tokenizer.vocabulary), documents)(
        "continuation", documents.world.draw(0, 10, HELD_OUT)
    )
    assert np.allclose(bits / 32, np.log2(documents.tokenizer.vocabulary.size), rtol=0.1)


def test_documents_longer_than_a_row_are_refused(all_documents):
    documents = all_documents["moving"]
    some = documents.documents("text-to-video", documents.world.draw(0, 2))
    with pytest.raises(ValueError, match="raise row_length"):
        document_bits(tiny_model(documents.tokenizer.vocabulary), some, row_length=64)


def test_tokenizers_of_something_else_are_refused(tokenizer):
    with pytest.raises(ValueError, match="frames_per_step"):
        WorldDocuments(moving(frames_per_step=4), tokenizer)
    with pytest.raises(ValueError, match="factor 8"):
        WorldDocuments(shapes(1), tokenizer, 36)
    coin = World.__new__(World)
    coin.name = "coin"
    with pytest.raises(ValueError, match="no pictures"):
        WorldDocuments(coin, tokenizer)
    blurred = fit_tokenizer(list(standard_worlds().values()), codebook_size=8)
    with pytest.raises(ValueError, match="does not keep them apart"):
        WorldDocuments(shapes(1), blurred).check_distinct()


def test_pictures_to_cluster_must_be_whole_patches():
    with pytest.raises(ValueError, match="multiples of 8"):
        fit_patches(torch.zeros(2, 3, 20, 32), 8)
    with pytest.raises(ValueError, match="1 to 192"):
        fit_patches(torch.zeros(2, 3, 32, 32), 8, embed_dim=500)


class Untouched:
    """A model and an engine that must not be asked for anything."""

    def __getattr__(self, name):
        raise AssertionError(f"asked for {name} before the numbers were checked")


def test_too_few_samples_are_told_for_every_test_before_the_model_is_asked(all_documents, monkeypatch):
    subject = WorldModel(Untouched(), Untouched(), all_documents, SuiteOptions(samples=200))
    monkeypatch.setattr(worlds.WorldSuite, "prepare", lambda suite, request: subject)
    with pytest.raises(ValueError) as caught:
        SUITES["calibration"].prepare(Namespace())
    lines = str(caught.value).splitlines()
    assert len(lines) > 2 and all("are needed" in line for line in lines[1:])


def test_the_samples_that_the_message_asks_for_are_enough(all_documents):
    with pytest.raises(ValueError) as caught:
        check_samples(WorldModel(Untouched(), Untouched(), all_documents, SuiteOptions(samples=200)))
    asked = max(int(number) for number in re.findall(r"about (\d+) are needed", str(caught.value)))
    check_samples(WorldModel(Untouched(), Untouched(), all_documents, SuiteOptions(samples=asked)))
