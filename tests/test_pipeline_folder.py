"""Saving and loading a trained model: whole folders, or errors that say what is wrong with them."""

import json
import shutil

import pytest
import torch

from emu import Emu
from emu_tokenizers.files import new_folder, write_file


@pytest.fixture(scope="module")
def saved(tiny_emu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_emu.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "tiny")
    return tmp_path / "tiny"


def forget_files(folder):
    """Take the list of files out of `emu.json`, as someone does who changes one by hand."""
    settings = json.loads((folder / "emu.json").read_text())
    (folder / "emu.json").write_text(json.dumps({**settings, "files": {}}))


def test_a_saved_model_generates_the_same(tiny_emu, saved):
    loaded = Emu.from_pretrained(saved, device="cpu")
    ours, theirs = (emu.generate_images("a ball", seed=1, size=(16, 16))[0] for emu in (tiny_emu, loaded))
    assert torch.equal(ours.codes, theirs.codes)
    assert loaded.defaults == tiny_emu.defaults
    assert ours.image.tobytes() == theirs.image.tobytes()


def test_a_saved_folder_holds_no_pickle_and_no_leftovers(saved):
    names = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "emu.json", "multimodal_tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".partial"))]
    assert [path.name for path in saved.parent.iterdir()] == ["tiny"]


def test_saving_replaces_a_model_as_a_whole_and_keeps_what_is_no_part_of_it(tiny_emu, copy):
    (copy / "notes.txt").write_text("mine")
    (copy / "model-00002-of-00002.safetensors").write_text("of an earlier model")
    tiny_emu.save_pretrained(copy)
    assert (copy / "notes.txt").read_text() == "mine"
    assert not (copy / "model-00002-of-00002.safetensors").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["tiny"]
    assert Emu.from_pretrained(copy).defaults == tiny_emu.defaults


def test_the_working_folder_is_no_place_for_a_model(tiny_emu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (".", "..", tmp_path):
        with pytest.raises(ValueError, match="working folder"):
            tiny_emu.save_pretrained(folder)


def test_a_failed_save_leaves_the_earlier_model(tiny_emu, copy, monkeypatch):
    def fail(folder):
        raise OSError("disk full")

    monkeypatch.setattr(tiny_emu.tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny_emu.save_pretrained(copy)
    assert [path.name for path in copy.parent.iterdir()] == ["tiny"]
    assert Emu.from_pretrained(copy).defaults == tiny_emu.defaults


def test_a_missing_folder_is_named_with_what_there_is():
    with pytest.raises(FileNotFoundError, match=r"'nowhere'.*save_pretrained.*bundled"):
        Emu.from_pretrained("nowhere")


@pytest.mark.parametrize("device", ["tpu9", "cuda:99"])
def test_an_unknown_device_is_refused(saved, device):
    with pytest.raises(ValueError, match=device):
        Emu.from_pretrained(saved, device=device)


@pytest.mark.parametrize("part", ["config.json", "model.safetensors", "multimodal_tokenizer.json", "text_tokenizer"])
def test_a_half_written_folder_is_refused_with_what_it_lacks(copy, part):
    target = copy / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(FileNotFoundError, match=part):
        Emu.from_pretrained(copy)


@pytest.mark.parametrize("part", ["text_tokenizer/tokenizer.model", "vision_tokenizer", "vision_tokenizer/config.json"])
def test_a_folder_with_half_a_tokenizer_is_refused(copy, part):
    target = copy / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises((FileNotFoundError, ValueError), match="tokenizer"):
        Emu.from_pretrained(copy)


@pytest.mark.parametrize("part", ["model.safetensors", "config.json", "multimodal_tokenizer.json", "emu.json"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_cut_file_is_refused(copy, part, keep):
    data = (copy / part).read_bytes()
    (copy / part).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"tiny"):
        Emu.from_pretrained(copy)


def test_missing_weights_are_not_made_up(copy):
    from safetensors.torch import load_file, save_file

    forget_files(copy)
    weights = load_file(copy / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"tiny.*lm_head"):
        Emu.from_pretrained(copy)


def test_foreign_tokenizers_are_refused_with_both_fingerprints(copy):
    settings = json.loads((copy / "emu.json").read_text())
    trained, settings["fingerprints"]["vision"] = settings["fingerprints"]["vision"], "0123456789abcdef"
    (copy / "emu.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"0123456789abcdef.*{trained}"):
        Emu.from_pretrained(copy)


def test_a_model_of_another_vocabulary_is_refused(copy):
    forget_files(copy)
    config = json.loads((copy / "config.json").read_text())
    config["vocabulary"]["controls"].update(bos=config["vocabulary"]["controls"]["eos"])
    config["vocabulary"]["controls"].update(eos=config["bos_token_id"])
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="vocabulary [0-9a-f]{16}.* has [0-9a-f]{16}"):
        Emu.from_pretrained(copy)


def test_unknown_generation_settings_are_refused(copy):
    settings = json.loads((copy / "emu.json").read_text())
    settings["generation"]["cfg_scale"] = 3
    (copy / "emu.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="cfg_scale.*guidance_scale"):
        Emu.from_pretrained(copy)


def test_a_folder_without_generation_settings_uses_the_library_s(copy):
    (copy / "emu.json").unlink()
    emu = Emu.from_pretrained(copy)
    with pytest.raises(ValueError, match="no size"):
        emu.generate_images("a ball")
    assert emu.generate_images("a ball", size=(8, 8))[0].codes.shape == (2, 2)


def test_every_file_of_a_saved_folder_is_listed_and_its_length_checked(copy):
    listed = json.loads((copy / "emu.json").read_text())["files"]
    every = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert set(listed) == every - {"emu.json"}
    for name in listed:
        kept = (copy / name).read_bytes()
        (copy / name).write_bytes(kept + b" ")
        with pytest.raises(ValueError, match=name):
            Emu.from_pretrained(copy)
        (copy / name).unlink()
        with pytest.raises(FileNotFoundError, match=name.split("/")[0]):
            Emu.from_pretrained(copy)
        (copy / name).write_bytes(kept)
    assert Emu.from_pretrained(copy, verify=True)


def test_verify_finds_a_changed_byte_in_any_file_and_names_it(copy):
    for name in json.loads((copy / "emu.json").read_text())["files"]:
        kept = (copy / name).read_bytes()
        (copy / name).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(ValueError, match=name):
            Emu.from_pretrained(copy, verify=True)
        (copy / name).write_bytes(kept)


def test_a_folder_of_the_first_version_is_read_and_cannot_be_verified(tiny_emu, copy):
    settings = json.loads((copy / "emu.json").read_text())
    old = {"format_version": 1, "generation": settings["generation"], "fingerprints": settings["fingerprints"]}
    (copy / "emu.json").write_text(json.dumps(old))
    assert Emu.from_pretrained(copy).defaults == tiny_emu.defaults
    with pytest.raises(ValueError, match=r"emu\.json lists no files"):
        Emu.from_pretrained(copy, verify=True)


@pytest.mark.parametrize(
    "change", [{"format_version": 3}, {"files": {"../config.json": {"bytes": 1, "sha256": ""}}}, {"files": []}]
)
def test_a_settings_file_of_another_form_is_refused(copy, change):
    settings = json.loads((copy / "emu.json").read_text())
    (copy / "emu.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ValueError, match=r"emu\.json"):
        Emu.from_pretrained(copy)


def test_written_files_are_whole_or_absent(tmp_path):
    write_file(tmp_path / "new" / "file", b"first")
    write_file(tmp_path / "new" / "file", b"second")
    assert (tmp_path / "new" / "file").read_bytes() == b"second"
    with pytest.raises(RuntimeError), new_folder(tmp_path / "folder", ()) as partial:
        (partial / "half").write_text("")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"), new_folder(tmp_path / "file", ()):
        pass


def test_a_card_beside_a_model_may_change_and_go(tiny_emu, tmp_path):
    from emu.model_settings import write_settings

    tiny_emu.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("a card")
    write_settings(tmp_path / "model", {}, tiny_emu.tokenizer.fingerprints)
    (tmp_path / "model" / "README.md").unlink()
    assert Emu.from_pretrained(tmp_path / "model", verify=True)
