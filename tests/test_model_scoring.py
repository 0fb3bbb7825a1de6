"""Losses of single tokens against logits of the whole vocabulary."""

import pytest
import torch

from emu.documents import TokenDocument
from emu.model.scoring import losses_of_hidden, token_losses
from emu.packing import pack
from tests.test_model_loss import small


@pytest.fixture
def packed():
    lengths = [7, 1, 12, 4, 15, 6]
    weights = [(torch.rand(length) > 0.3).float() for length in lengths]
    documents = [TokenDocument(torch.randint(0, 61, (len(w),)), w) for w in weights]
    return pack(documents, 26, source_ids=range(len(documents)))


def plain(model, packed):
    """(R, S) from full logits, in the model's dtype."""
    logits = model(input_ids=packed.input_ids, segment_ids=packed.segment_ids).logits
    found = torch.zeros(packed.input_ids.shape, dtype=logits.dtype)
    found[:, 1:] = -logits.log_softmax(-1)[:, :-1].gather(2, packed.input_ids[:, 1:, None])[..., 0]
    return torch.where(packed.loss_weights > 0, found, 0.0)


def test_they_are_the_negative_log_likelihoods_of_full_logits(packed):
    model = small()
    torch.testing.assert_close(token_losses(model, packed), plain(model, packed), rtol=1e-6, atol=1e-6)
    assert token_losses(model.float(), packed).dtype == torch.float32


def test_nothing_is_lost_where_nothing_is_predicted(packed):
    losses = token_losses(small(), packed)
    assert (losses[packed.loss_weights == 0] == 0).all() and (losses[packed.loss_weights > 0] > 0).all()


def test_their_weighted_mean_is_the_training_loss_with_its_gradients(packed):
    model = small()
    mean = (token_losses(model, packed) * packed.loss_weights).sum() / packed.loss_weights.sum()
    ids, labels, segment_ids, weights, _ = packed
    loss = model(ids, labels=labels, segment_ids=segment_ids, loss_weights=weights).loss
    torch.testing.assert_close(mean, loss, rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(value, list(model.parameters())) for value in (mean, loss))
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_hidden_states_come_without_logits_and_give_the_same_losses(packed):
    model = small()
    out = model(input_ids=packed.input_ids, segment_ids=packed.segment_ids, return_hidden=True)
    assert out.logits is None and out.loss is None and out.hidden_states[-1].shape == (*packed.input_ids.shape, 32)
    found = losses_of_hidden(out.hidden_states[-1], model.lm_head.weight, packed)
    assert torch.equal(found, token_losses(model, packed))
    assert model(input_ids=packed.input_ids, return_hidden=True, return_logits=True).logits is not None
