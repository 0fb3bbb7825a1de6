"""`emu join`: a text and a vision tokenizer become one tokenizer of documents."""

from __future__ import annotations

import pytest
from PIL import Image

from emu import Emu, MultimodalTokenizer, TextTokenizer, VisionTokenizer, VisionTokenizerConfig, Vocabulary
from emu.cli.main import main
from emu.modalities import MODALITIES, BoxesModality


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    TextTokenizer.train(["a red circle", "4*4 2fps 1s"] * 20, 290).save_pretrained(root / "text")
    vision = VisionTokenizer(VisionTokenizerConfig.preset("small", base_channels=8, codebook_size=64))
    vision.save_pretrained(root / "vision")
    return root


def test_the_folder_is_that_of_the_two_tokenizers(folders, tmp_path, capsys):
    assert main(["join", str(folders / "text"), str(folders / "vision"), "--output", str(tmp_path / "joined")]) == 0
    joined = MultimodalTokenizer.from_pretrained(tmp_path / "joined")
    assert joined.vocabulary == Vocabulary.build(290, {"vision": 64})
    assert joined.text.fingerprint == TextTokenizer.from_pretrained(folders / "text").fingerprint
    assert joined.vision.fingerprint == VisionTokenizer.from_pretrained(folders / "vision").fingerprint
    words, image = joined.decode(joined.encode(["a red circle", Image.new("RGB", (16, 16))]))
    assert words == "a red circle" and image.size == (16, 16)
    printed = capsys.readouterr().out
    for name, first, count in [("text", 0, 290), ("pad", 290, 1), ("codes of vision", 298, 64), ("all", 0, 362)]:
        assert f"\n{name} " in printed and f"{first}{count:>11}" in printed
    assert joined.vocabulary.fingerprint in printed


def test_layout_and_modalities_are_chosen(folders, tmp_path):
    words = ["--layout", "emu3.5", "--modalities", "image"]
    main(["join", str(folders / "text"), str(folders / "vision"), "--output", str(tmp_path / "joined"), *words])
    layout = MultimodalTokenizer.from_pretrained(tmp_path / "joined").layout
    assert (layout.name, list(layout.modalities)) == ("emu3.5", ["image"])


def test_a_tokenizer_of_models_that_fill_in_has_a_control_for_holes(folders, tmp_path):
    parts = [str(folders / "text"), str(folders / "vision")]
    for name, words in {"plain": [], "filling": ["--infill"]}.items():
        assert main(["join", *parts, "--output", str(tmp_path / name), *words]) == 0
        layout = MultimodalTokenizer.from_pretrained(tmp_path / name).layout
        assert (layout.hole is not None) == bool(words)


def test_only_modalities_that_these_two_can_code_are_offered(folders, tmp_path, capsys):
    class Sound(BoxesModality):
        name, codec = "sound", "sound"

    MODALITIES.register("sound", Sound())
    words = ["--output", str(tmp_path / "new"), "--modalities", "sound"]
    try:
        with pytest.raises(SystemExit, match="2"):
            main(["join", str(folders / "text"), str(folders / "vision"), *words])
    finally:
        MODALITIES.unregister("sound")
    assert "invalid choice: 'sound' (choose from" in capsys.readouterr().err


def test_parts_come_out_of_the_folders_of_models_too(tmp_path):
    assert main(["join", "digits", "digits", "--output", str(tmp_path / "joined")]) == 0
    joined = MultimodalTokenizer.from_pretrained(tmp_path / "joined")
    assert joined.fingerprints == Emu.from_pretrained("digits").tokenizer.fingerprints


def test_what_cannot_be_joined_is_told_and_nothing_is_written(folders, tmp_path, capsys):
    text, vision, taken = str(folders / "text"), str(folders / "vision"), tmp_path / "taken"
    taken.mkdir()
    for parts, output, told in [
        (("nowhere", vision), tmp_path / "new", "no text tokenizer at nowhere"),
        ((text, str(taken)), tmp_path / "new", "holds no config.json"),
        ((text, vision), taken, "exists; name a folder that does not"),
    ]:
        assert main(["join", *parts, "--output", str(output)]) == 2
        assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
