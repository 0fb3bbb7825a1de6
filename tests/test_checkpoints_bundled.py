"""The name of a bundled model at every entry point, a folder of one's own beside it."""

import shutil

import pytest

from emu import Emu, EmuForCausalLM, MultimodalTokenizer, TextTokenizer, VisionTokenizer
from emu.checkpoints.bundled import BUNDLED, bundled_models, find_model_folder
from emu.hub.processor import EmuProcessor

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


def test_a_recipe_that_goes_on_from_the_bundled_model_is_checked_before_work(tmp_path):
    import yaml

    from emu.training.checks import num_positions
    from emu.training.cli import EmuCLI
    from emu.training.module import EmuModule
    from tests.training_toys import write_recipe

    recipe = write_recipe(tmp_path)
    config = yaml.safe_load(recipe.read_text())
    config["model"] = {"pretrained": "digits"}
    recipe.write_text(yaml.safe_dump(config))
    assert num_positions(EmuCLI(EmuModule, ["--config", str(recipe)]).model) == 256
