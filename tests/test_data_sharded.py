"""Token shards as the data of a run: the tokenizers must be theirs, and the exported model says what it was trained for."""

import json

import pytest
import torch
import yaml
from PIL import Image

from emu import Emu, EmuConfig, EmuForCausalLM
from emu.data.sharded import ShardData
from emu.data.shards import TokenizedDocument, TokenShards, what_is_trained, write_manifest, write_shard
from emu.documents import Text, Video
from tests.shards_toys import VOCABULARY, make_album, make_documents, write
from tests.training_toys import run, write_recipe

PICTURES = torch.Generator().manual_seed(1)


def draw(rows, columns):
    pixels = torch.randint(0, 255, (rows, columns, 3), generator=PICTURES, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def make_shards(folder, tokenizer, documents=None, fingerprints=None):
    """Shards of captions with pictures, questions about pictures, and a clip, made by a tokenizer."""
    documents = documents or [
        *([Text("a red circle", 0.1), draw(8, 8)] for _ in range(4)),
        [draw(8, 12), Text("a red circle", 0.0), "a ball"],
        ["a ball rolling left", Video([draw(8, 8) for _ in range(8)], fps=4)],
    ]
    made = []
    for items in documents:
        document = tokenizer.document(items)
        first = document.spans[0]
        caption = (first.start, first.length) if isinstance(items[0], Text) else (0, 0)
        made.append(TokenizedDocument(document, caption))
    write_shard(folder, 0, made, tokenizer.vocabulary, {})
    write_manifest(folder, 1, tokenizer.vocabulary, fingerprints or tokenizer.fingerprints)
    return str(folder)


@pytest.fixture
def place(tiny_emu, tmp_path):
    tiny_emu.tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def data_of(place, folder, **options):
    options = {"tokenizer": str(place / "tokenizer"), **options}
    return ShardData({"mine": folder}, {"mine": 2}, 128, **options)


def test_shards_of_different_tokenizers_are_not_mixed(tmp_path):
    one = write(tmp_path / "one", make_documents(9))
    two = write(tmp_path / "two", make_documents(9), fingerprint="b")
    data = ShardData({"one": str(one), "two": str(two)}, {"one": 2, "two": 1}, 16, seed=3)
    (problem,) = data.source_problems()
    assert "'one' and 'two' were made by different tokenizers: {'text': ('a', 'b')}" in problem
    fine = ShardData({"one": str(one)}, {"one": 2}, 16, validation={"one": str(one)})
    assert fine.source_problems() == []
    batch = next(iter(fine.train_dataloader()))
    assert batch.input_ids.shape[1] == 16 and int(batch.segment_ids.max()) >= 1


def test_tokenizers_that_did_not_make_the_shards_are_refused_by_name(place, tiny_emu):
    ours = tiny_emu.tokenizer.fingerprints
    fine = make_shards(place / "fine", tiny_emu.tokenizer)
    assert data_of(place, fine, validation={"held": fine}).source_problems() == []
    for kind in ("text", "vision"):
        other = make_shards(place / kind, tiny_emu.tokenizer, fingerprints={**ours, kind: "feedbeef"})
        (problem,) = data_of(place, other).source_problems()
        assert (
            f"source 'mine' ({other}) was made with the {kind} feedbeef, data.tokenizer" in problem
            and ours[kind] in problem
        )
        problems = data_of(place, fine, validation={"held": other}).source_problems()
        assert any(f"'validation held' ({other}) was made with the {kind} feedbeef" in problem for problem in problems)


def test_a_tokenizer_that_cannot_be_read_is_told_before_the_first_step(place, tiny_emu):
    shards = make_shards(place / "shards", tiny_emu.tokenizer)
    (place / "tokenizer" / "multimodal_tokenizer.json").write_text("{")
    (problem,) = data_of(place, shards).source_problems()
    assert "data.tokenizer" in problem and "cannot be read" in problem
    (problem,) = data_of(place, shards, tokenizer=str(place / "fine")).source_problems()
    assert "data.tokenizer" in problem


def test_damage_is_found_before_the_first_step_where_all_is_verified(place, tiny_emu):
    shards = make_shards(place / "shards", tiny_emu.tokenizer)
    path = place / "shards" / "shard-00000.weights.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert data_of(place, shards).source_problems() == []
    (problem,) = data_of(place, shards, verify=True).source_problems()
    assert "shard-00000.weights.npy is damaged" in problem
    (place / "shards" / "manifest.json").write_text("{")
    (problem,) = data_of(place, shards, verify=True).source_problems()
    assert "manifest.json is damaged" in problem


def test_what_a_model_was_trained_for_comes_from_the_shards(place, tiny_emu):
    shards = TokenShards(make_shards(place / "shards", tiny_emu.tokenizer), caption_dropout=0.1)
    trained, settings = what_is_trained([shards], {"vision": 4})
    assert trained.tasks[0] == "text_to_image"
    assert set(trained.tasks) == {
        *("text_to_image", "unconditional_image", "image_to_text", "text_to_video", "video_continuation")
    }
    assert trained.sizes == ((8, 8), (8, 12)) and trained.frames == (8,) and trained.rates == (4,)
    assert trained.context == shards.max_length
    assert settings == {"size": (8, 8), "frames": 8, "fps": 4}
    without, _ = what_is_trained([TokenShards(shards.folder)], {})
    assert "unconditional_image" not in without.tasks and without.sizes == ()
    unknown, nothing = what_is_trained([TokenShards(write(place / "unknown", make_documents(4)))], {"vision": 4})
    assert unknown.tasks == () and unknown.context == 8 and nothing == {}


def test_a_model_that_was_trained_on_shards_draws_without_a_size(place, tiny_emu):
    data = data_of(place, make_shards(place / "shards", tiny_emu.tokenizer), caption_dropout=0.1)
    folder = place / "model"
    tiny_emu.model.save_pretrained(folder)
    data.save_pretrained(folder)
    emu = Emu.from_pretrained(folder)
    (result,) = emu.generate_images("a red circle", guidance_scale=1.0)
    assert result.image.size == (8, 8) and emu.defaults.frames == 8
    assert json.loads((folder / "emu.json").read_text())["trained"]["sizes"] == [[8, 8], [8, 12]]


def test_the_album_of_the_tests_teaches_what_it_shows(tmp_path):
    trained, settings = what_is_trained([TokenShards(write(tmp_path / "shards", make_album()))], {"vision": 8})
    assert {"text_to_image", "image_to_text", "text_to_video", "unconditional_video", "text_continuation"} <= set(
        trained.tasks
    )
    assert settings["size"] == (16, 24)
    assert set(trained.rates) == {8, 4}


def shard_recipe(place, shards, **options):
    """A recipe of one step on these shards."""
    recipe = write_recipe(place)
    config = yaml.safe_load(recipe.read_text())
    options = {"sources": {"mine": shards}, "documents_per_step": {"mine": 2}, "row_length": 64, **options}
    config["data"] = {"class_path": "emu.data.sharded.ShardData", "init_args": options}
    config["model"]["config"]["max_position_embeddings"] = 64
    config["trainer"]["max_steps"] = 1
    recipe.write_text(yaml.safe_dump(config))
    return recipe


def test_a_run_on_shards_ends_in_a_model_with_defaults(place, tiny_emu):
    shards = make_shards(place / "shards", tiny_emu.tokenizer)
    run(shard_recipe(place, shards, tokenizer=str(place / "tokenizer"), long_documents="drop"))
    emu = Emu.from_pretrained(place / "run" / "model")
    assert emu.defaults.size == (8, 8) and emu.tokenizer.fingerprints == tiny_emu.tokenizer.fingerprints
    assert emu.trained.sizes == ((8, 8), (8, 12)) and "text_to_image" in emu.trained.tasks


def test_a_model_of_another_vocabulary_is_not_trained_on(place, tiny_emu):
    shards = make_shards(place / "shards", tiny_emu.tokenizer)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = EmuConfig(vocab_size=VOCABULARY.size, vocabulary=VOCABULARY.to_dict(), max_position_embeddings=64, **sizes)
    EmuForCausalLM(config).save_pretrained(place / "first")
    recipe = shard_recipe(place, shards, tokenizer=str(place / "tokenizer"))
    config = yaml.safe_load(recipe.read_text())
    config["model"] = {"pretrained": str(place / "first")}
    recipe.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=f"{VOCABULARY.fingerprint}.*{tiny_emu.tokenizer.vocabulary.fingerprint}"):
        run(recipe)
    assert not list((place / "run").glob("checkpoints/*"))
