"""transformers' Auto classes and `generate` on folders of ours."""

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from emu import Emu, EmuConfig, EmuForCausalLM
from emu.hub.processor import EmuProcessor
from emu.hub.tiny_models import write


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    released = write("emu3", root / "released")
    Emu.from_pretrained(released).save_pretrained(root / "ours")
    return released, root / "ours"


def test_auto_classes_open_a_folder_of_ours(folders):
    _, ours = folders
    assert type(AutoConfig.from_pretrained(ours)) is EmuConfig
    assert type(AutoModelForCausalLM.from_pretrained(ours)) is EmuForCausalLM
    assert type(AutoProcessor.from_pretrained(ours)) is EmuProcessor


def test_generate_of_transformers_answers_as_emu_does(folders):
    _, ours = folders
    emu, processor = Emu.from_pretrained(ours), AutoProcessor.from_pretrained(ours)
    model = AutoModelForCausalLM.from_pretrained(ours)
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    documents = [[image, "Describe it"], ["a shiba inu"]]
    inputs = processor(documents)
    assert inputs["attention_mask"].sum(1).tolist() == [len(emu.tokenizer.question(doc)) for doc in documents]
    first, count = emu.tokenizer.vocabulary.text
    allowed = [*range(first, first + count), emu.tokenizer.vocabulary.control("eos")]
    rows = model.generate(
        **inputs, max_new_tokens=8, do_sample=False, prefix_allowed_tokens_fn=lambda *_: allowed, pad_token_id=0
    )
    texts = [processor.decode_text(row[inputs["input_ids"].shape[1] :]) for row in rows]
    assert texts == emu.generate_text(documents, max_new_tokens=8)


def test_prompts_of_images_end_in_their_header(folders):
    processor = EmuProcessor.from_pretrained(folders[0])
    vocabulary = processor.tokenizer.vocabulary
    inputs = processor(["a", "a shiba inu"], grid=(3, 4))
    assert (inputs["input_ids"][:, -1] == vocabulary.control("image")).all()
    assert inputs["input_ids"][0, 0] == vocabulary.control("pad") and inputs["attention_mask"][0, 0] == 0
    block = processor.tokenizer.layout.block("image", (3, 4)).fill(torch.zeros(3, 4, dtype=torch.int64))
    text, picture = processor.decode(torch.cat([inputs["input_ids"][1], block]))
    assert text == "a shiba inu" and picture.size == (32, 24)


def test_a_processor_is_saved_and_refuses_nothing_to_do(folders, tmp_path):
    processor = EmuProcessor.from_pretrained(folders[1])
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="one document or more"):
        processor([])
    with pytest.raises(ValueError, match='"pt"'):
        processor(["x"], return_tensors="np")
