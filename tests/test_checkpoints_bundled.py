"""The name of a bundled model at every entry point, a folder of one's own beside it."""

import shutil

import pytest
import yaml

from emu import Emu, EmuForCausalLM, MultimodalTokenizer, TextTokenizer, VisionTokenizer
from emu.checkpoints.bundled import BUNDLED, bundled_models, find_model_folder
from emu.data.shards import TokenizedDocument, write_manifest, write_shard
from emu.hub.processor import EmuProcessor
from emu.training.cli import EmuCLI
from emu.training.module import EmuModule
from emu.training.preflight import num_positions
from tests.training_toys import run, write_recipe

DIGITS = BUNDLED / "digits"
pytestmark = pytest.mark.skipif(not DIGITS.is_dir(), reason="the bundled model is not trained yet")


@pytest.mark.parametrize(
    ("reader", "part"),
    [(MultimodalTokenizer, ""), (TextTokenizer, "text_tokenizer"), (VisionTokenizer, "vision_tokenizer")],
)
def test_tokenizers_know_the_name_and_the_models_folder(reader, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = repr(reader.from_pretrained(DIGITS / part)) if reader is TextTokenizer else None
    for name in ("digits", DIGITS, DIGITS / part):
        found = reader.from_pretrained(name)
        fingerprints = found.fingerprints if reader is MultimodalTokenizer else found.fingerprint
        assert fingerprints and (expected is None or repr(found) == expected)


@pytest.mark.parametrize("reader", [EmuForCausalLM, EmuProcessor, Emu])
def test_models_and_processors_know_the_name(reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reader.from_pretrained("digits") is not None


def test_a_name_that_is_a_folder_too_is_the_bundled_model_and_said_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DIGITS, tmp_path / "digits")
    with pytest.warns(UserWarning, match=r"write './digits' for the folder"):
        assert find_model_folder("digits") == DIGITS
    assert find_model_folder("./digits").resolve() == tmp_path / "digits"


@pytest.mark.parametrize("name", [".", "..", "", "digits/", "nothing"])
def test_what_is_not_a_bundled_name_is_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not find_model_folder(name).resolve().is_relative_to(BUNDLED)
    assert "digits" in bundled_models()


def test_the_working_folder_as_a_tokenizer_is_not_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="multimodal_tokenizer.json"):
        MultimodalTokenizer.from_pretrained(".")


def shard_recipe(tmp_path, **options):
    """A recipe over shards that the bundled tokenizers made."""
    tokenizer = MultimodalTokenizer.from_pretrained("digits")
    documents = [TokenizedDocument(tokenizer.document([f"a handwritten {n}"])) for n in ("seven", "two", "one")]
    write_shard(tmp_path / "shards", 0, documents, tokenizer.vocabulary, {})
    write_manifest(tmp_path / "shards", 1, tokenizer.vocabulary, tokenizer.fingerprints)
    recipe = write_recipe(tmp_path)
    config = yaml.safe_load(recipe.read_text())
    folders = {"mine": str(tmp_path / "shards")}
    settings = {"sources": folders, "documents_per_step": {"mine": 2}, "row_length": 32, **options}
    config["data"] = {"class_path": "emu.data.sharded.ShardData", "init_args": settings}
    config["trainer"]["max_steps"] = 1
    recipe.write_text(yaml.safe_dump(config))
    return recipe, config


def test_the_documented_recipe_for_ones_own_data_exports_a_model_with_tokenizers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, _ = shard_recipe(tmp_path, tokenizer="digits")
    run(recipe)
    exported = MultimodalTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert exported.fingerprints == MultimodalTokenizer.from_pretrained("digits").fingerprints


def test_tokenizers_and_shards_that_cannot_be_read_are_told_together_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, config = shard_recipe(tmp_path, tokenizer="nowhere", validation={"x": "gone", "y": "lost"})
    with pytest.raises(ValueError, match=r"(?s)data.validation 'x': gone .*data.validation 'y': lost") as caught:
        run(recipe, "--model.optimizer.lr", -1)
    assert "lr is -1" in str(caught.value) and not (tmp_path / "run").exists()


def test_a_recipe_that_goes_on_from_the_bundled_model_is_checked_before_work(tmp_path):
    recipe, config = shard_recipe(tmp_path)
    config["model"] = {"pretrained": "digits"}
    recipe.write_text(yaml.safe_dump(config))
    assert num_positions(EmuCLI(EmuModule, ["--config", str(recipe)]).model) == 256
