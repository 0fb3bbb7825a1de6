"""Blocks that keep less for the backward pass, and compiled ones, train as plain ones do."""

import pytest
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch.autograd.graph import saved_tensors_hooks

from emu.model import EmuConfig, EmuForCausalLM
from emu.model.block import Block
from emu.training.blocks import checkpoint_blocks, compile_blocks
from tests.training_toys import run, same, write_recipe

SHAPES = ((4, 24), (3, 48), (5, 40), (2, 17))


def make_model(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = EmuConfig(
        vocab_size=64, num_key_value_heads=2, qk_norm=True, max_position_embeddings=64, **sizes, **options
    )
    return EmuForCausalLM(config).train()


def make_batch(rows, length):
    ids = torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(rows))
    segments = torch.ones_like(ids)
    segments[:, length // 2 :] = 2
    return {"input_ids": ids, "labels": ids, "segment_ids": segments}


def step(model, batch):
    """Loss, gradients, and bytes kept for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    model.zero_grad()
    torch.manual_seed(1)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return loss.detach(), gradients, sum(size for storage, size in kept.items() if storage not in weights)


@pytest.mark.parametrize("kept", ["selective", "full"])
def test_dropping_activations_changes_no_loss_and_no_gradient_even_with_dropout(kept):
    plain, lean = make_model(residual_dropout=0.1), make_model(residual_dropout=0.1)
    checkpoint_blocks(lean, kept)
    for rows, length in SHAPES[:2]:
        (loss, gradients, _), (ours, our_gradients, _) = (
            step(model, make_batch(rows, length)) for model in (plain, lean)
        )
        assert torch.equal(loss, ours) and same(gradients, our_gradients)


def test_full_checkpointing_keeps_less_than_half_of_the_activations():
    sizes = {}
    for kept in ("none", "full"):
        model = make_model()
        checkpoint_blocks(model, kept)
        *_, sizes[kept] = step(model, make_batch(8, 64))
    assert sizes["full"] <= 0.45 * sizes["none"]


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["none", "selective", "full"])
def test_compiled_blocks_are_one_graph_for_all_blocks_and_batches_and_give_the_same_gradients(kept):
    torch._dynamo.reset()
    plain, compiled = make_model(), make_model()
    checkpoint_blocks(compiled, kept)
    compile_blocks(compiled, backend="aot_eager")  # fullgraph: a break is an error
    for rows, length in SHAPES:
        (loss, gradients, _), (ours, our_gradients, _) = (
            step(model, make_batch(rows, length)) for model in (plain, compiled)
        )
        assert float(ours) == pytest.approx(float(loss), rel=1e-5)
        for name, gradient in gradients.items():
            assert (gradient - our_gradients[name]).abs().max() <= 1e-5 * gradient.abs().max(), name
    assert len(_debug_get_cache_entry_list(Block.forward.__code__)) == 1
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_blocks_train_and_validate_and_go_on_from_a_checkpoint_and_their_weights_have_the_usual_names(
    tmp_path,
):
    torch._dynamo.reset()
    recipe, words = write_recipe(tmp_path), ("--model.compile", True, "--model.config.residual_dropout", 0)
    plain = run(recipe, *words[2:], "--trainer.default_root_dir", tmp_path / "plain")
    run(recipe, *words, "--trainer.max_steps", 6)
    compiled = run(recipe, *words, "--ckpt_path", "last")
    ours, theirs = (EmuForCausalLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("run", "plain"))
    assert ours.keys() == theirs.keys() == compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
    torch._dynamo.reset()


def test_a_run_that_drops_activations_is_the_same_run(tmp_path):
    recipe = write_recipe(tmp_path)
    plain = run(recipe, "--trainer.max_steps", 3)
    lean = run(
        recipe,
        "--trainer.max_steps",
        3,
        "--model.checkpointing",
        "full",
        "--trainer.default_root_dir",
        tmp_path / "lean",
    )
    assert same(plain.model.state_dict(), lean.model.state_dict())
