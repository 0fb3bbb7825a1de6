"""Documents to ids and back through real, small tokenizers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from emu import MultimodalTokenizer, TextTokenizer, Video, VisionTokenizer, VisionTokenizerConfig, Vocabulary
from emu.documents import CodeSegment, Text
from emu.modalities import MODALITIES, register, unregister


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    corpus = ["a red circle", "what is it?", "4*4", "2*4*4 8f 8fps 1s"] * 20
    vision = VisionTokenizer(VisionTokenizerConfig.preset("small", base_channels=8, codebook_size=64)).eval()
    return MultimodalTokenizer(TextTokenizer.train(corpus, vocab_size=300), vision)


def picture(seed, height=16, width=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_items_come_back_in_order_with_neighbouring_text_merged(tokenizer):
    clip = Video([picture(i) for i in range(6)], fps=8)
    items = tokenizer.decode(tokenizer.encode(["a red ", "circle", picture(1), "what is it?", clip]))
    assert [type(item) for item in items] == [str, Image.Image, str, Video]
    assert (items[0], items[2]) == ("a red circle", "what is it?")
    assert items[1].size == (16, 16) and len(items[3]) == 6 and items[3].fps == 8


def test_a_decoded_picture_is_the_tokenizers_reconstruction(tokenizer):
    segment = tokenizer.segments(picture(2))[0]
    [decoded] = tokenizer.decode(tokenizer.encode([picture(2)]))
    assert np.array_equal(np.asarray(decoded), np.asarray(tokenizer.decode_segment(segment)))


@pytest.mark.parametrize(
    "text", ["", " two  spaces ", "naïve\n\n漢字 🙂", "<|image start|>4*4<|image token|>", "<unk></s>\x00"]
)
def test_any_text_survives_and_stays_text(tokenizer, text):
    ids = tokenizer.encode([text, picture(0)], add_special=False)
    assert tokenizer.decode(ids)[0] == text if text else isinstance(tokenizer.decode(ids)[0], Image.Image)
    first, count = tokenizer.vocabulary.text
    assert all(first <= index < first + count for index in tokenizer.encode([text], add_special=False).tolist())


def test_bos_and_eos_frame_a_document_unless_left_out(tokenizer):
    controls = tokenizer.vocabulary.controls
    ids = tokenizer.encode("a red circle")
    assert (int(ids[0]), int(ids[-1])) == (controls["bos"], controls["eos"])
    assert torch.equal(tokenizer.encode("a red circle", add_special=False), ids[1:-1])


def test_a_prompt_ends_in_the_header_of_its_block(tokenizer):
    prompt = tokenizer.prompt(["a red circle"], "image", (4, 4))
    whole = tokenizer.encode(["a red circle", CodeSegment("image", torch.zeros(4, 4, dtype=torch.long))])
    assert torch.equal(whole[: len(prompt)], prompt)
    assert int(prompt[-1]) == tokenizer.vocabulary.controls["image"]


def test_weights_of_text_pieces_reach_their_tokens(tokenizer):
    document = tokenizer.document([picture(0), Text("what is it?", 0.0), "a red circle"])
    question, answer = (len(tokenizer.encode(text, add_special=False)) for text in ("what is it?", "a red circle"))
    assert document.weights[-1 - answer - question : -1 - answer].sum() == 0
    assert (document.weights[-1 - answer :] == 1).all()


def test_saving_and_loading_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = MultimodalTokenizer.from_pretrained(tmp_path)
    document = ["a red circle", picture(3), Video([picture(4)], fps=24)]
    assert torch.equal(again.encode(document), tokenizer.encode(document))
    assert again.fingerprints == tokenizer.fingerprints


def test_a_foreign_vision_tokenizer_in_the_folder_is_named(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(1)
    VisionTokenizer(VisionTokenizerConfig.preset("small", base_channels=8, codebook_size=64)).save_pretrained(
        tmp_path / "vision_tokenizer"
    )
    with pytest.raises(ValueError, match=f"vision.*{tokenizer.vision.fingerprint}"):
        MultimodalTokenizer.from_pretrained(tmp_path)


def test_folders_that_are_none_are_refused(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="holds no multimodal_tokenizer.json"):
        MultimodalTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    table = json.loads((tmp_path / "multimodal_tokenizer.json").read_text())
    (tmp_path / "multimodal_tokenizer.json").write_text(json.dumps({**table, "format_version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        MultimodalTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "item, error, message",
    [
        (picture(0, 16, 18), ValueError, "multiple"),
        (3, TypeError, "got int"),
        (np.zeros((4, 4)), TypeError, "got ndarray"),
    ],
)
def test_items_that_no_modality_takes(tokenizer, item, error, message):
    with pytest.raises(error, match=message):
        tokenizer.encode(["a", item])


def test_a_vocabulary_of_another_codebook_is_refused(tokenizer):
    with pytest.raises(ValueError, match="64 codes, the vocabulary holds 32"):
        MultimodalTokenizer(tokenizer.text, tokenizer.vision, vocabulary=Vocabulary.build(300, {"vision": 32}))
    with pytest.raises(ValueError, match="no layout 'emu9'"):
        MultimodalTokenizer(tokenizer.text, tokenizer.vision, layout="emu9")
    with pytest.raises(ValueError, match="needs a vision tokenizer"):
        MultimodalTokenizer(tokenizer.text, None)


def test_a_modality_without_its_tokenizer_is_told_by_the_names_of_arguments(tokenizer):
    with pytest.raises(
        ValueError, match="'image' needs a vision tokenizer; pass one as vision, or leave 'image' out of"
    ):
        MultimodalTokenizer(tokenizer.text, None)

    class Sound(type(MODALITIES["image"])):
        name, codebook, codec = "sound", "sounds", "audio"

    register("sound", Sound())
    try:
        with pytest.raises(ValueError, match="needs a tokenizer 'audio'"):
            MultimodalTokenizer(tokenizer.text, tokenizer.vision, modalities=("sound",))
    finally:
        unregister("sound")
