"""Packed rows, loss weights and the loss itself against plain formulas."""

import pytest
import torch

from emu.model import EmuConfig, EmuForCausalLM


def small(**changes) -> EmuForCausalLM:
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 100.0,
        "initializer_range": 0.3,
        "qk_norm": True,
    }
    return EmuForCausalLM(EmuConfig(**{**sizes, **changes})).double()


def packed_rows():
    """Two rows of documents of unequal length, padding at the end, and random weights, some of them zero."""
    lengths = [[7, 1, 12, 4], [15, 6]]
    segments = torch.zeros(2, 26, dtype=torch.int64)
    for row, sizes in enumerate(lengths):
        start = 0
        for number, size in enumerate(sizes, 1):
            segments[row, start : start + size] = number
            start += size
    weights = torch.rand(2, 26) * (torch.rand(2, 26) > 0.3)
    return torch.randint(0, 61, (2, 26)), segments, weights


def documents(ids, segments, *others):
    for row in range(len(ids)):
        for number in segments[row].unique().tolist():
            if number:
                here = segments[row] == number
                yield tuple(x[row][here][None] for x in (ids, *others))


def plain_loss(model, ids, segments, weights, z_loss=0.0):
    """Every document alone, full logits, float64."""
    total = norm = torch.zeros((), dtype=torch.float64)
    for document, weight in documents(ids, segments, weights):
        logits = model(document).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, document[0, 1:], reduction="none")
        losses = losses + z_loss * logits.logsumexp(-1) ** 2
        total = total + (losses * weight[0, 1:]).sum()
        norm = norm + weight[0, 1:].sum()
    return total / norm


def test_packed_documents_get_the_logits_they_get_alone():
    model = small()
    ids, segments, _ = packed_rows()
    packed = model(ids, segment_ids=segments).logits
    alone = torch.cat([model(document).logits[0] for (document,) in documents(ids, segments)])
    torch.testing.assert_close(packed[segments > 0], alone, rtol=1e-6, atol=1e-6)
    crossing = model(ids).logits
    assert (crossing - packed)[segments > 1].abs().max() > 1e-2  # without segments documents do see each other


@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_loss_and_gradients_equal_the_plain_formula(z_loss):
    model = small(z_loss=z_loss)
    ids, segments, weights = packed_rows()
    expected = plain_loss(model, ids, segments, weights, z_loss)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    found = model(ids, labels=ids, segment_ids=segments, loss_weights=weights).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for gradient, (name, parameter) in zip(wanted, model.named_parameters(), strict=True):
        torch.testing.assert_close(
            torch.autograd.grad(found, parameter, retain_graph=True)[0], gradient, msg=name, rtol=1e-4, atol=1e-6
        )


def test_ignored_labels_count_for_nothing():
    model = small()
    ids = torch.randint(0, 61, (2, 12))
    labels = ids.clone()
    labels[:, :7] = -100
    tail = torch.zeros(2, 12)
    tail[:, 7:] = 1
    assert torch.equal(model(ids, labels=labels).loss, model(ids, labels=ids, loss_weights=tail).loss)
    labels[:] = -100
    assert model(ids, labels=labels).loss == 0


def test_accumulation_divides_by_the_number_given():
    model = small()
    ids, segments, weights = packed_rows()
    once = model(ids, labels=ids, segment_ids=segments, loss_weights=weights).loss
    total = sum(weight[0, 1:].sum() for _, weight in documents(ids, segments, weights))
    parts = [
        model(
            ids[i : i + 1],
            labels=ids[i : i + 1],
            segment_ids=segments[i : i + 1],
            loss_weights=weights[i : i + 1],
            num_items_in_batch=total,
        ).loss
        for i in range(2)
    ]
    torch.testing.assert_close(sum(parts), once)


def test_logits_come_exactly_when_asked_for():
    model = small()
    ids = torch.randint(0, 61, (1, 6))
    assert model(ids).logits.shape == (1, 6, 61)
    assert model(ids, labels=ids).logits is None
    both = model(ids, labels=ids, return_logits=True)
    assert both.loss is not None and torch.equal(both.logits, model(ids).logits)


def test_checkpointing_changes_no_gradient():
    ids, segments, weights = packed_rows()
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = small(residual_dropout=0.1, embedding_dropout=0.1).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(2)
        model(ids, labels=ids, segment_ids=segments, loss_weights=weights).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", ["attention_dropout", "residual_dropout", "embedding_dropout"])
def test_dropout_acts_in_training_alone(name):
    model = small(**{name: 0.5})
    ids, segments, _ = packed_rows()
    model.train()
    assert not torch.equal(model(ids, segment_ids=segments).logits, model(ids, segment_ids=segments).logits)
    model.eval()
    calm = small()
    calm.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids, segment_ids=segments).logits, calm.train()(ids, segment_ids=segments).logits)


def test_a_few_steps_learn_a_sequence_by_heart():
    model = small(initializer_range=0.02, z_loss=1e-4).float().train()
    ids, segments, _ = packed_rows()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(ids, labels=ids, segment_ids=segments).loss
        loss.backward()
        optimizer.step()
    assert loss < 1.0


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"labels": torch.zeros(1, 3, dtype=torch.int64)}, "labels has shape"),
        ({"loss_weights": torch.ones(1, 4)}, "without labels"),
        (
            {"segment_ids": torch.ones(1, 4, dtype=torch.int64), "attention_mask": torch.ones(1, 4)},
            "segment_ids describe packed",
        ),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask has shape"),
    ],
)
def test_inputs_that_do_not_agree_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        small()(torch.zeros(1, 4, dtype=torch.int64), **arguments)
