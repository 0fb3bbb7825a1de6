"""New models that start with the weights of others: longer, with another vocabulary, or from a text model of transformers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from emu import EmuConfig, EmuForCausalLM, MultimodalTokenizer, Vocabulary
from emu.hub.id_names import names_of_tokenizer
from emu.model.scoring import token_losses
from emu.packing import Packed
from emu.tokenizers import TextTokenizer
from emu.training.initial_weights import source_of_weights_problems, start_from
from emu.training.module import EmuModule
from emu.training.objectives import DPO, GRPO, NextToken
from emu.training.resume import changes, refused
from tests.training_toys import run, write_recipe

SIZES = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 390}
SIZES |= {"eos_token_id": 391, "initializer_range": 0.1}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FOREIGN = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama3": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}, "tie_word_embeddings": True},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16, "rms_norm_eps": 1e-6}),
}


@pytest.fixture(scope="module")
def saved(tiny_emu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    tiny_emu.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tied(tiny_emu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied") / "model"
    torch.manual_seed(1)
    model = EmuForCausalLM(EmuConfig(**tiny_emu.model.config.to_dict() | {"tie_word_embeddings": True}))
    model.save_pretrained(folder)
    tiny_emu.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def grown(tiny_emu):
    """More pieces, in another order; a further control; codes before the text."""
    words = [
        "a blue square",
        "green triangles above blue squares",
        "a red circle",
        "a ball rolling left",
        "1*2*3 4f 5fps 6.789s",
    ]
    text, ours = TextTokenizer.train(words, 310), tiny_emu.tokenizer
    controls = [*reversed(ours.vocabulary.controls), "hole"]
    ids = {name: 16 + place for place, name in enumerate(controls)}
    first = 16 + len(ids)
    table = Vocabulary(first + text.size, {"vision": (0, 16)}, ids, text=(first, text.size))
    return MultimodalTokenizer(text, ours.vision, vocabulary=table)


@pytest.fixture(scope="module", params=list(FOREIGN))
def foreign(request, tmp_path_factory):
    """A text model of transformers with its tokenizer, and the model itself."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(2)
    kind, config, options = FOREIGN[request.param]
    model = kind(config(**SIZES | options)).eval()
    model.save_pretrained(folder)
    write_byte_pairs(folder)
    return folder, model


def write_byte_pairs(folder):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["a red circle", "a blue ball"] * 4, trainers.BpeTrainer(initial_alphabet=alphabet))
    made.add_special_tokens(["<|begin|>"])
    made.save(str(folder / "tokenizer.json"))


def same_ids(old, new):
    """Ids that both vocabularies have, as each of them counts."""
    ours, theirs = names_of_tokenizer(old), names_of_tokenizer(new)
    shared = [name for name in ours if name in theirs]
    return torch.tensor([ours[name] for name in shared]), torch.tensor([theirs[name] for name in shared])


@pytest.mark.parametrize("source", ["saved", "tied"])
def test_old_ids_have_their_logits_in_a_vocabulary_that_grew_and_counts_in_another_order(
    source, grown, tiny_emu, request
):
    folder = request.getfixturevalue(source)
    old = EmuForCausalLM.from_pretrained(folder)
    new = start_from(folder, None, grown.vocabulary, grown)
    before, after = same_ids(tiny_emu.tokenizer, grown)
    assert len(before) > 250 and not torch.equal(before, after)
    order = torch.randint(0, len(before), (2, 24))
    wanted, found = old(before[order]).logits[..., before], new(after[order]).logits[..., after]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert new.config.tie_word_embeddings == old.config.tie_word_embeddings
    assert new.config.vocab_size == grown.vocabulary.size and new.config.bos_token_id == grown.vocabulary.control("bos")


def test_new_ids_start_at_the_mean_of_the_old(saved, grown):
    old, new = EmuForCausalLM.from_pretrained(saved), start_from(saved, None, grown.vocabulary, grown)
    hole = grown.vocabulary.control("hole")
    for theirs, ours in ((old.model.embed_tokens, new.model.embed_tokens), (old.lm_head, new.lm_head)):
        torch.testing.assert_close(ours.weight[hole], theirs.weight.mean(0), atol=1e-6, rtol=0)


def test_codes_of_another_vision_tokenizer_are_new_ids(saved, tiny_emu):
    ours = tiny_emu.tokenizer
    torch.manual_seed(7)
    other = type(ours.vision)(ours.vision.config).eval()
    tokenizer = MultimodalTokenizer(ours.text, other)
    new = start_from(saved, None, tokenizer.vocabulary, tokenizer)
    first, count = tokenizer.vocabulary.range("vision")
    rows = new.lm_head.weight[first : first + count]
    torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    assert torch.equal(new.lm_head.weight[:100], tiny_emu.model.lm_head.weight[:100])


def test_four_times_the_context_leaves_the_losses_of_its_first_quarter(saved, tiny_emu):
    config = tiny_emu.model.config
    assert config.max_position_embeddings == 512
    longer = EmuConfig(**config.to_dict() | {"max_position_embeddings": 2048})
    new = start_from(saved, longer, tiny_emu.tokenizer.vocabulary, tiny_emu.tokenizer)
    assert new.config.max_position_embeddings == 2048
    ids = torch.randint(0, config.vocab_size, (1, 2048))
    found, wanted = (
        token_losses(model, Packed(part, torch.ones_like(part), part, torch.ones(part.shape), torch.zeros_like(part)))
        for model, part in ((new, ids), (tiny_emu.model, ids[:, :512]))
    )
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[:, :512], wanted, atol=1e-5, rtol=0)


def test_another_rotary_base_is_that_of_the_new_model(saved, tiny_emu, capsys):
    table = tiny_emu.model.config.to_dict() | {"rope_theta": 4e6, "rope_parameters": None}
    new = start_from(saved, EmuConfig(**table), tiny_emu.tokenizer.vocabulary, tiny_emu.tokenizer)
    assert new.config.rope_theta == 4e6 and "rope_theta 1000000.0 -> 4000000.0" in capsys.readouterr().err


def test_text_models_of_transformers_give_their_own_logits(foreign):
    folder, theirs = foreign
    ids = torch.randint(0, 390, (2, 100))
    ours = start_from(folder, None, None)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)


def test_a_text_model_learns_pictures_and_says_the_same_of_text(foreign, tiny_emu):
    folder, theirs = foreign
    text = TextTokenizer.from_pretrained(folder)
    tokenizer = MultimodalTokenizer(text, tiny_emu.tokenizer.vision)
    ours = start_from(folder, None, tokenizer.vocabulary, tokenizer)
    ids = torch.tensor([text.encode("a red ball, and a blue circle")])
    bos = torch.tensor([[theirs.config.bos_token_id]]), torch.tensor([[tokenizer.vocabulary.control("bos")]])
    wanted = theirs(torch.cat([bos[0], ids], 1)).logits[..., : text.size]
    found = ours(torch.cat([bos[1], ids], 1)).logits[..., : text.size]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_config_json_of_an_earlier_transformers_is_read(foreign):
    folder, theirs = foreign
    file = folder / "config.json"
    written = file.read_text()
    table = json.loads(written)
    rope = table.pop("rope_parameters")
    table["rope_theta"], table["rope_scaling"] = rope.pop("rope_theta"), rope if len(rope) > 1 else None
    file.write_text(json.dumps(table))
    try:
        assert EmuForCausalLM.from_pretrained(folder).config.rope_theta == theirs.config.rope_parameters["rope_theta"]
    finally:
        file.write_text(written)


def test_biases_are_a_reason_to_refuse_qwen2(tmp_path):
    Qwen2ForCausalLM(Qwen2Config(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'qwen2'.* have biases.*Qwen3"):
        start_from(tmp_path, None, None)


def test_a_vocabulary_without_words_in_common_is_refused(saved, foreign, tiny_emu):
    text = TextTokenizer.from_pretrained(foreign[0])
    table = Vocabulary.build(text.size, {"vision": 16})
    alone = EmuForCausalLM.from_pretrained(saved)
    alone.save_pretrained(saved.parent / "alone")
    with pytest.raises(ValueError, match="does not say what its ids stand for"):
        start_from(saved.parent / "alone", None, table, MultimodalTokenizer(text, tiny_emu.tokenizer.vision))
    with pytest.raises(ValueError, match=r"another vocabulary than the data.*data\.tokenizer"):
        start_from(saved, None, table)


def test_another_shape_is_refused_by_its_fields(saved, tiny_emu):
    wider = EmuConfig(**tiny_emu.model.config.to_dict() | {"hidden_size": 64, "qk_norm": True})
    with pytest.raises(
        ValueError, match=r"a model of hidden_size 32, qk_norm False, model.config has hidden_size 64, qk_norm True"
    ):
        start_from(saved, wider, None)


def test_a_run_starts_from_a_checkpoint_or_a_folder_with_a_position_of_its_own(tmp_path):
    recipe = write_recipe(tmp_path)
    first = run(recipe, "--trainer.max_steps", 2).model
    (step,) = (tmp_path / "run" / "checkpoints").glob("*.safetensors")
    for start in (step, tmp_path / "run" / "model"):
        again = start_from(start, None, Vocabulary.from_dict(first.config.vocabulary))
        assert all(map(torch.equal, again.parameters(), first.parameters()))
        assert again.config.hidden_size == 32 and again.config.vocabulary == first.config.vocabulary
    words = ("--trainer.max_steps", 1, "--model.optimizer.lr", 1e-9, "--data.row_length", 64)
    words += ("--model.config.max_position_embeddings", 64, "--trainer.default_root_dir", tmp_path / "longer")
    second = run(recipe, "--model.init_from", step, *words)
    assert second.trainer.global_step == 1 and second.model.config.max_position_embeddings == 64
    for wanted, found in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)


@pytest.mark.slow
def test_a_run_that_started_from_weights_goes_on_without_them(tmp_path):
    recipe = write_recipe(tmp_path)
    run(recipe, "--trainer.max_steps", 2)
    table = yaml.safe_load(recipe.read_text())
    del table["model"]["config"]
    table["model"]["init_from"] = str(tmp_path / "run" / "model")
    recipe.write_text(yaml.safe_dump(table))
    folders = [("--trainer.default_root_dir", tmp_path / name) for name in ("whole", "stopped")]
    whole = run(recipe, *folders[0], "--trainer.max_steps", 6)
    run(recipe, *folders[1], "--trainer.max_steps", 3)
    stopped = run(recipe, *folders[1], "--trainer.max_steps", 6, "--ckpt_path", "last")
    assert all(map(torch.equal, whole.parameters(), stopped.parameters()))


@pytest.mark.parametrize("objective", [NextToken(), DPO(), DPO(reference="other"), GRPO(len, kl=0.1), GRPO(len)])
def test_a_resumed_run_reads_the_weights_that_it_is_kept_near_again(saved, tiny_emu, objective):
    module = EmuModule(tiny_emu.model.config, init_from=str(saved), objective=objective)
    module._trainer = SimpleNamespace(ckpt_path="step=00000003.safetensors")
    built = module.build_model(tiny_emu.tokenizer.vocabulary)
    assert objective.keeps_start == all(map(torch.equal, built.parameters(), tiny_emu.model.parameters()))
    for key in ("pretrained", "init_from"):
        found = changes({"model": {key: "run/model"}}, {"model": {key: "moved"}})
        assert len(refused(found, start_is_kept=objective.keeps_start)) == objective.keeps_start


def test_what_cannot_be_started_from_is_told_before_any_work(tmp_path):
    recipe = write_recipe(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)model\.init_from: no folder.*row_length is 0"):
        run(recipe, "--model.init_from", tmp_path / "nowhere", "--data.row_length", 0)
    both = source_of_weights_problems(None, "digits", "digits", there=True)
    assert both == ["model.pretrained and model.init_from are given; leave one out: the former takes a model as it is"]
