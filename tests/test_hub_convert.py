"""Models go from one format to another and back without a changed bit."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, Emu3ForCausalLM, Emu3ForConditionalGeneration, Emu3TextConfig

from emu import Emu, EmuForCausalLM, MultimodalTokenizer, TextTokenizer, VisionTokenizer, VisionTokenizerConfig
from emu.checkpoints.weights import Checkpoint
from emu.cli.convert import main
from emu.families import FAMILIES
from emu.families.base import build_vision
from emu.families.detection import find_family
from emu.families.emu3.tiny import write_vision
from emu.families.emu3.vision import vision_tensors
from emu.hub.load import read_tokenizer
from emu.hub.tiny_models import write
from tests.tensors import same_tensors

FORMATS = ("transformers", "emu3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    return {form: write(form, root / form) for form in FORMATS}


def tensors(folder):
    return dict(Checkpoint.open(folder).tensors())


def convert(source, target, to, *options):
    assert main([str(source), str(target), "--to", to, *options]) == 0
    return target


@pytest.mark.parametrize("form", FORMATS)
def test_there_and_back_gives_the_same_tensors(form, folders, tmp_path):
    ours = convert(folders[form], tmp_path / "ours", "emu", "--shard-size", "60KB")
    assert find_family(ours).name == "emu" and (ours / "model.safetensors.index.json").is_file()
    back = convert(ours, tmp_path / "back", form)
    assert find_family(back).name == form
    assert same_tensors(tensors(back), tensors(folders[form]))
    inner = "vision_tokenizer"
    if form == "emu3":
        assert same_tensors(load_file(back / inner / "model.safetensors"), tensors(folders[form] / inner))
        for name in ("emu3.tiktoken", "emu3_vision_tokens.txt"):
            assert (back / name).read_bytes() == (folders[form] / name).read_bytes()


@pytest.mark.parametrize(("form", "to"), [("transformers", "emu3"), ("emu3", "transformers")])
def test_formats_of_others_convert_into_each_other(form, to, folders, tmp_path):
    target = convert(folders[form], tmp_path / "target", to)
    assert find_family(target).name == to
    one, other = (EmuForCausalLM.from_pretrained(folder) for folder in (folders[form], target))
    assert same_tensors(one.state_dict(), other.state_dict())
    before, after = (read_tokenizer(folder) for folder in (folders[form], target))
    assert before.fingerprints == after.fingerprints


def test_transformers_opens_what_was_converted_for_it(folders, tmp_path):
    target = convert(folders["emu3"], tmp_path / "target", "transformers")
    theirs = Emu3ForConditionalGeneration.from_pretrained(target).eval()
    processor, ours = AutoProcessor.from_pretrained(target), Emu.from_pretrained(folders["emu3"])
    ids = torch.randint(0, ours.model.config.vocab_size, (2, 7))
    torch.testing.assert_close(theirs(input_ids=ids).logits, ours.model(ids).logits, atol=1e-5, rtol=1e-5)
    image = Image.effect_noise((40, 32), 90).convert("RGB")
    text = "You are a helpful assistant. USER: <image>def f(x). ASSISTANT:"
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    wanted = inputs["input_ids"][0].clone()
    codes = theirs.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"])
    wanted[wanted == processor.image_token_id] = codes.long()
    assert ours.tokenizer.question([image, "def f(x)"]).tolist() == wanted.tolist()


def test_a_converted_folder_is_an_emu(folders, tmp_path):
    target = convert(folders["transformers"], tmp_path / "target", "emu")
    one, other = Emu.from_pretrained(folders["transformers"]), Emu.from_pretrained(target)
    assert one.defaults == other.defaults and one.tokenizer.fingerprints == other.tokenizer.fingerprints
    options = {"size": (32, 24), "temperature": 0.0}
    assert torch.equal(one.generate_images("x", **options)[0].codes, other.generate_images("x", **options)[0].codes)


def test_dtype_and_shards_are_those_asked_for(folders, tmp_path):
    target = convert(folders["emu3"], tmp_path / "target", "emu", "--dtype", "bfloat16", "--shard-size", "50KB")
    model = EmuForCausalLM.from_pretrained(target)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.lm_head.weight, tensors(folders["emu3"])["lm_head.weight"].bfloat16())
    for shard in target.glob("model-*.safetensors"):
        assert len(load_file(shard)) == 1 or shard.stat().st_size < 60_000


@pytest.mark.parametrize("to", ["emu", "emu3"])
def test_a_language_model_alone_converts(to, tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "eos_token_id": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1}
    Emu3ForCausalLM(Emu3TextConfig(**sizes)).save_pretrained(tmp_path / "source")
    target = convert(tmp_path / "source", tmp_path / "target", to)
    back = convert(target, tmp_path / "back", "transformers", "--language-model-only")
    assert same_tensors(tensors(back), tensors(tmp_path / "source"))
    assert type(Emu3ForCausalLM.from_pretrained(back)) is Emu3ForCausalLM


def test_emu35_converts_to_ours_and_back(tmp_path):
    source = write("emu3.5", tmp_path / "source", alone=True)
    ours = convert(source, tmp_path / "ours", "emu", "--language-model-only")
    back = convert(ours, tmp_path / "back", "emu3", "--language-model-only")
    assert find_family(back).name == "emu3.5" and same_tensors(tensors(back), tensors(source))


def test_names_of_vision_tokenizers_go_both_ways(folders):
    tokenizer = read_tokenizer(folders["emu3"]).vision
    for form in FORMATS:
        again = build_vision(FAMILIES[form].vision_config(tokenizer), vision_tensors(tokenizer, form), "memory")
        assert again.fingerprint == tokenizer.fingerprint


def test_vision_codes_equal_those_of_transformers(folders):
    theirs = Emu3ForConditionalGeneration.from_pretrained(folders["transformers"]).eval().model.vqmodel
    ours = read_tokenizer(folders["transformers"]).vision
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    codes = ours.encode(pixels)
    assert torch.equal(codes, torch.stack(list(theirs.encode(pixels, torch.tensor([[32, 48]] * 2)).image_tokens)))
    torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), atol=1e-4, rtol=1e-4)


def test_emu35_and_its_tokenizer_are_an_emu(tmp_path):
    source = write("emu3.5", tmp_path / "Emu3.5-Image")
    emu = Emu.from_pretrained(source)
    assert emu.tokenizer.layout.name == "emu3.5" and emu.spatial_factor == 16
    assert (emu.defaults.size, emu.defaults.guidance_scale, emu.defaults.top_k) == ((880, 1168), 5.0, 5120)
    options = {"size": (48, 64), "temperature": 0.0}
    codes = emu.generate_images("a cat", **options)[0].codes
    assert codes.shape == (3, 4)
    again = Emu.from_pretrained(convert(source, tmp_path / "ours", "emu"))
    assert torch.equal(again.generate_images("a cat", **options)[0].codes, codes)
    assert again.tokenizer.fingerprints == emu.tokenizer.fingerprints


def test_a_pickled_vision_tokenizer_is_read_only_by_name(tmp_path):
    source = write("emu3.5", tmp_path / "model")
    inner = source / "vision_tokenizer"
    torch.save({"state_dict": load_file(inner / "model.safetensors")}, inner / "model.ckpt")
    wanted = Emu.from_pretrained(source).tokenizer.vision.fingerprint
    (inner / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.ckpt.*allow_pickle"):
        Emu.from_pretrained(source)
    assert Emu.from_pretrained(source, allow_pickle="model.ckpt").tokenizer.vision.fingerprint == wanted


def test_what_a_target_cannot_say_is_refused_before_writing(tmp_path, folders):
    text = TextTokenizer.train(["a few words to train on, and a few more"], 300)
    small = {"codebook_size": 16, "base_channels": 8, "channel_multiplier": (1, 1), "norm_groups": 4}
    vision = VisionTokenizer(VisionTokenizerConfig(**small, spatial_factor=2, num_res_blocks=1, attn_resolutions=()))
    tokenizer = MultimodalTokenizer(text, vision)
    emu = Emu.from_pretrained(folders["emu3"])
    config = emu.model.config.to_dict() | {"vocab_size": tokenizer.vocabulary.size, "vocabulary": None}
    config |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    Emu(EmuForCausalLM(type(emu.model.config)(**config)), tokenizer).save_pretrained(tmp_path / "source")
    for to in ("transformers", "emu3"):
        with pytest.raises(ValueError, match="norm groups"):
            main([str(tmp_path / "source"), str(tmp_path / "target"), "--to", to])
        assert not (tmp_path / "target").exists()


def test_qk_norm_is_not_written_for_transformers(tmp_path):
    source = write("emu3.5", tmp_path / "source", alone=True)
    with pytest.raises(ValueError, match="QK-norm"):
        main([str(source), str(tmp_path / "target"), "--to", "transformers", "--language-model-only"])


def test_an_existing_target_is_kept(folders, tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(FileExistsError, match="--overwrite"):
        main([str(folders["emu3"]), str(tmp_path / "target"), "--to", "emu"])
    convert(folders["emu3"], tmp_path / "target", "emu", "--overwrite")


def test_a_vision_tokenizer_of_other_codes_is_named(folders, tmp_path):
    other = write_vision(tmp_path / "other", num_codes=32)
    with pytest.raises(ValueError, match=r"other has 32 codes.*ids for 64.*vision_tokenizer="):
        Emu.from_pretrained(folders["emu3"], vision_tokenizer=other)


def test_a_vision_tokenizer_of_another_fingerprint_is_named(folders, tmp_path):
    ours = convert(folders["emu3"], tmp_path / "ours", "emu")
    other = write_vision(tmp_path / "other", seed=9)
    with pytest.raises(ValueError, match="fingerprint .* was trained with"):
        Emu.from_pretrained(ours, vision_tokenizer=other)


def test_a_text_tokenizer_of_another_size_is_named(folders, tmp_path):
    config = json.loads((folders["emu3"] / "config.json").read_text())
    lines = (folders["emu3"] / "emu3.tiktoken").read_text().splitlines()
    (tmp_path / "emu3.tiktoken").write_text("\n".join(lines[:300]))
    with pytest.raises(ValueError, match=rf"300 text ids.*{config['pad_token_id']} before its first control"):
        Emu.from_pretrained(folders["emu3"], text_tokenizer=tmp_path)


def test_a_missing_vision_tokenizer_is_asked_for(tmp_path):
    alone = write("emu3", tmp_path / "room" / "model", alone=True)
    with pytest.raises(FileNotFoundError, match="vision_tokenizer="):
        Emu.from_pretrained(alone)


def test_a_name_stands_for_the_family_that_can_hold_the_model(folders, tmp_path):
    source = write("emu3.5", tmp_path / "source", alone=True)
    by_name = convert(source, tmp_path / "by_name", "emu3.5", "--language-model-only")
    by_predecessor = convert(source, tmp_path / "by_predecessor", "emu3", "--language-model-only")
    for target in (by_name, by_predecessor):
        assert find_family(target).name == "emu3.5" and same_tensors(tensors(target), tensors(source))
    with pytest.raises(ValueError, match="no QK-norm"):
        main([str(folders["emu3"]), str(tmp_path / "none"), "--to", "emu3.5"])
    assert not (tmp_path / "none").exists()
