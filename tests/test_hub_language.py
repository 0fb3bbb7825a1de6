"""Language models in the formats of transformers and of the original load as ours and compute the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Emu3ForCausalLM,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from emu import Emu, EmuForCausalLM
from emu.checkpoints.weights import Checkpoint
from emu.families import FAMILIES
from emu.families.detection import find_family
from emu.hub.convert import open_source
from emu.hub.tiny_models import write

SHAPES = {
    "one key head": {"num_key_value_heads": 1},
    "as many key heads": {"num_key_value_heads": 4, "hidden_size": 32},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "dynamic rope": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        "max_position_embeddings": 8,
    },
    "narrow heads": {"head_dim": 8},
    "tied": {"tie_word_embeddings": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    return {
        "transformers": write("transformers", root / "hf"),
        "emu3": write("emu3", root / "emu3", alone=True),
        "emu3.5": write("emu3.5", root / "emu35", alone=True),
    }


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def padded_batch(size):
    ids = torch.randint(0, size, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :4] = 0
    return ids, mask


@pytest.mark.parametrize("form", ["transformers", "emu3", "emu3.5"])
def test_the_format_of_a_folder_is_found(form, folders):
    assert find_family(folders[form]).name == form


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_conditional_generation_gives_the_same_logits(dtype, tolerance, folders):
    theirs = Emu3ForConditionalGeneration.from_pretrained(folders["transformers"], dtype=dtype).eval()
    ours = EmuForCausalLM.from_pretrained(folders["transformers"], dtype=dtype)
    ids, mask = padded_batch(ours.config.vocab_size)
    torch.testing.assert_close(ours(ids).logits, theirs(input_ids=ids).logits, atol=tolerance, rtol=tolerance)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    found = ours(ids, attention_mask=mask, position_ids=positions).logits
    wanted = theirs(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_causal_models_of_many_shapes_give_the_same_logits(shape, tmp_path):
    sizes = {"vocab_size": 90, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    Emu3ForCausalLM(Emu3TextConfig(**{**sizes, **SHAPES[shape]})).save_pretrained(tmp_path, max_shard_size="30KB")
    theirs = Emu3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ours = EmuForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids, mask = padded_batch(90)
    torch.testing.assert_close(ours(ids).logits, theirs(input_ids=ids).logits, atol=1e-11, rtol=1e-11)
    found, wanted = ours(ids, attention_mask=mask).logits, theirs(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], atol=1e-11, rtol=1e-11)


def test_the_original_format_is_read_tensor_by_tensor(folders):
    for form in ("emu3", "emu3.5"):
        model = EmuForCausalLM.from_pretrained(folders[form])
        for name, tensor in load_file(folders[form] / "model.safetensors").items():
            assert torch.equal(model.state_dict()[name], tensor), name
        assert model.config.qk_norm == (form == "emu3.5")
        assert model.config.embedding_dropout == model.config.attention_dropout == 0.0


def test_query_norms_are_those_of_qwen3(folders):
    """Emu3.5 starts from Qwen3, whose model in transformers has the same parts under the same names."""
    ours = EmuForCausalLM.from_pretrained(folders["emu3.5"], dtype=torch.float64)
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    fields += ("num_key_value_heads", "rms_norm_eps", "rope_parameters", "max_position_embeddings")
    config = Qwen3Config(**{name: getattr(ours.config, name) for name in fields})
    with torch.no_grad():
        for block in ours.model.layers:
            block.self_attn.q_norm.weight.uniform_(0.5, 2.0)
            block.self_attn.k_norm.weight.uniform_(0.5, 2.0)
    theirs = Qwen3ForCausalLM(config).double().eval()
    theirs.load_state_dict(ours.state_dict())
    ids, mask = padded_batch(config.vocab_size)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-11, rtol=1e-11)
    found, wanted = ours(ids, attention_mask=mask).logits, theirs(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], atol=1e-11, rtol=1e-11)


def test_what_was_read_is_saved_under_our_names(folders, tmp_path):
    model = EmuForCausalLM.from_pretrained(folders["transformers"])
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert find_family(tmp_path).name == "emu" and len(list(tmp_path.glob("*.safetensors"))) > 1
    assert set(Checkpoint.open(tmp_path).entries) == set(model.state_dict())
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is EmuForCausalLM and again.config.vocabulary == model.config.vocabulary
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_dtype_follows_the_file_or_the_caller(folders, tmp_path):
    assert EmuForCausalLM.from_pretrained(folders["emu3"]).dtype == torch.float32
    assert EmuForCausalLM.from_pretrained(folders["emu3"], dtype=torch.bfloat16).dtype == torch.bfloat16
    EmuForCausalLM.from_pretrained(folders["emu3"], dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert EmuForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_tables_of_ids_are_those_of_the_files(folders):
    for form in ("transformers", "emu3"):
        table = EmuForCausalLM.from_pretrained(folders[form]).config.vocabulary
        assert table == EmuForCausalLM.from_pretrained(folders["emu3"]).config.vocabulary
        assert table["ranges"]["vision"] == [table["size"] - 64, 64]
    newer = EmuForCausalLM.from_pretrained(folders["emu3.5"]).config.vocabulary["controls"]
    assert newer["bss"] == newer["eol"] - 100


def test_plain_text_generation_of_transformers_works(folders):
    model = EmuForCausalLM.from_pretrained(folders["emu3"])
    theirs = Emu3ForCausalLM(Emu3TextConfig(**{**model.config.to_dict(), "model_type": "emu3_text_model"})).eval()
    theirs.load_state_dict(model.state_dict())
    ids = torch.randint(0, 400, (2, 6))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), theirs.generate(ids, **options))


def test_an_unknown_architecture_is_named(folders, tmp_path):
    folder = copied(folders["emu3"], tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "chameleon"}))
    with pytest.raises(ValueError, match=r"config\.json has model_type 'chameleon'.*emu3_text_model"):
        EmuForCausalLM.from_pretrained(folder)


def test_a_vision_tokenizer_is_not_taken_for_a_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "Emu3VisionVQ"}))
    with pytest.raises(ValueError, match="vision_tokenizer="):
        EmuForCausalLM.from_pretrained(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*config\.json"):
        EmuForCausalLM.from_pretrained(tmp_path / "nowhere")


def test_a_repository_that_cannot_be_reached_is_named():
    with pytest.raises(FileNotFoundError, match="some-one/some-model"):
        EmuForCausalLM.from_pretrained("some-one/some-model")


def test_a_missing_shard_is_named(tmp_path, folders):
    EmuForCausalLM.from_pretrained(folders["emu3"]).save_pretrained(tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        EmuForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("keep", [4, 200, -1])
def test_a_truncated_file_is_named(keep, folders, tmp_path):
    file = copied(folders["transformers"], tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors.*Copy it again"):
        EmuForCausalLM.from_pretrained(file.parent)


def test_weights_of_another_vocabulary_are_refused(folders, tmp_path):
    folder = copied(folders["emu3"], tmp_path)
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**table, "vocab_size": table["vocab_size"] + 1}))
    with pytest.raises(ValueError, match=rf"has shape.*vocab_size {table['vocab_size'] + 1}"):
        EmuForCausalLM.from_pretrained(folder)


def test_missing_tensors_are_named(folders, tmp_path):
    folder = copied(folders["emu3"], tmp_path)
    state = load_file(folder / "model.safetensors")
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of .*layers\.1\.mlp\.up_proj"):
        EmuForCausalLM.from_pretrained(folder)


def test_biases_and_other_activations_are_refused(folders, tmp_path):
    folder = copied(folders["emu3"], tmp_path)
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**table, "hidden_act": "gelu"}))
    with pytest.raises(ValueError, match="hidden_act 'gelu'"):
        EmuForCausalLM.from_pretrained(folder)


def test_pickled_weights_are_read_only_by_name(folders, tmp_path):
    folder = copied(folders["emu3"], tmp_path)
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"allow_pickle=\['pytorch_model\.bin'\]"):
        EmuForCausalLM.from_pretrained(folder)
    model = EmuForCausalLM.from_pretrained(folder, allow_pickle="pytorch_model.bin")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_nothing_in_a_folder_is_executed(folders, tmp_path):
    folder = copied(folders["emu3"], tmp_path)
    table = json.loads((folder / "config.json").read_text())
    table["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(table))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    EmuForCausalLM.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def with_words(folder, tmp_path, keep):
    """A copy whose vocabulary_map holds what `keep` says, and that has no tokenizer files."""
    folder = copied(folder, tmp_path)
    table = json.loads((folder / "config.json").read_text())
    table["vocabulary_map"] = {word: index for word, index in table["vocabulary_map"].items() if keep(word)}
    (folder / "config.json").write_text(json.dumps(table))
    (folder / "tokenizer.json").unlink()
    return folder


def needed_by_transformers(word):
    return word in ("<image>", "<|extra_200|>") or word.startswith("<|visual token ")


def test_a_vocabulary_map_may_hold_only_what_transformers_reads(folders, tmp_path):
    folder = with_words(folders["transformers"], tmp_path, needed_by_transformers)
    theirs = Emu3ForConditionalGeneration.from_pretrained(folder).eval()
    ours = EmuForCausalLM.from_pretrained(folder)
    ids = torch.randint(0, ours.config.vocab_size, (2, 9))
    torch.testing.assert_close(ours(ids).logits, theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert ours.config.vocabulary is None
    assert open_source(folder, language_model_only=True).config.vocab_size == ours.config.vocab_size
    with pytest.raises(ValueError, match=r"no word for .*image.*vocabulary_map of config\.json or in tokenizer\.json"):
        Emu.from_pretrained(folder)


def test_words_that_the_map_lacks_come_from_the_tokenizer(folders, tmp_path):
    folder = with_words(folders["transformers"], tmp_path, needed_by_transformers)
    shutil.copy(folders["transformers"] / "tokenizer.json", folder)
    whole = EmuForCausalLM.from_pretrained(folders["transformers"])
    assert EmuForCausalLM.from_pretrained(folder).config.vocabulary == whole.config.vocabulary


def test_the_ids_of_a_released_size_are_known_without_words():
    released = FAMILIES["emu3"].vocabulary(Path("nowhere"), {"vocab_size": 184622})
    first, count = released.range("vision")
    words = {f"<|visual token {code:0>6d}|>": first + code for code in range(count)} | {"<|extra_200|>": 151846}
    config = {"text_config": {"vocab_size": 184622}, "vocabulary_map": words}
    assert FAMILIES["transformers"].vocabulary(Path("nowhere"), config) == released
    moved = {word: index - 1 for word, index in words.items()}
    with pytest.raises(ValueError, match="no word for"):
        FAMILIES["transformers"].vocabulary(Path("nowhere"), {**config, "vocabulary_map": moved})
