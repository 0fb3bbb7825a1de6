"""What curves say beside the loss: accuracy, logits and norms by kind of token, arithmetic, waiting; and validation by source and kind."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from emu.model import EmuConfig, EmuForCausalLM
from emu.model.predictions import predictions_of_hidden
from emu.packing import pack
from emu.training.curves import read_curves
from emu.training.flops import step_flops, utilisation
from emu.training.meters import StepMeter, TokenKinds
from emu.training.token_measures import Measures, OutputNorm
from tests.training_toys import VOCABULARY, make_document, run, write_recipe


def small():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return EmuForCausalLM(EmuConfig(vocab_size=VOCABULARY.size, num_key_value_heads=2, **sizes)).eval()


@pytest.fixture
def packed():
    return pack([make_document(6, 0), make_document(9, 24), make_document(4, 2)], 20)


def test_predictions_are_those_of_the_whole_logits_however_few_are_held_at_a_time(packed, monkeypatch):
    monkeypatch.setattr("emu.model.predictions.MOST_LOGITS", 3 * VOCABULARY.size)
    model = small()
    out = model(packed.input_ids, segment_ids=packed.segment_ids, return_logits=True, return_hidden=True)
    found = predictions_of_hidden(out.hidden_states[-1], model.lm_head.weight, packed)
    largest, ids = out.logits.max(-1)
    predicted = packed.loss_weights > 0
    assert not found.right[~predicted].any() and not found.largest[~predicted].any() and predicted.sum() == 19
    for row, place in predicted.nonzero().tolist():
        assert found.right[row, place] == (ids[row, place - 1] == packed.input_ids[row, place])
        assert found.largest[row, place] == pytest.approx(float(largest.detach()[row, place - 1]), rel=1e-5)


def test_measures_are_kept_apart_by_kind_of_token(packed):
    model, kinds = small(), TokenKinds(VOCABULARY)
    norm = OutputNorm(model.model.norm)
    norm.wanted = True
    hidden = model(packed.input_ids, segment_ids=packed.segment_ids, return_hidden=True).hidden_states[-1]
    predictions = predictions_of_hidden(hidden, model.lm_head.weight, packed)
    measures, numbers = Measures(kinds.names), kinds(packed.input_ids)
    for part in range(len(packed.input_ids)):
        rows = slice(part, part + 1)
        some = type(predictions)(*(tensor[rows] for tensor in predictions))
        measures.add(some, norm.last[rows], packed.loss_weights[rows], numbers[rows])
    row, predicted = measures.row(), packed.loss_weights > 0
    for number, kind in enumerate(kinds.names):
        chosen = predicted & (numbers == number)
        if chosen.any():
            assert row[f"accuracy/{kind}"] == pytest.approx(float(predictions.right[chosen].float().mean()))
            assert row[f"largest_logit/{kind}"] == pytest.approx(float(predictions.largest[chosen].max()))
            assert row[f"output_norm/{kind}"] == pytest.approx(float(norm.last[chosen].mean()))
        else:
            assert f"accuracy/{kind}" not in row and f"largest_logit/{kind}" not in row
    measures.reset()
    assert measures.row() == {}


def test_the_arithmetic_of_a_step_is_that_of_its_products():
    model = small().train()
    ids = torch.randint(0, VOCABULARY.size, (1, 12))
    with FlopCounterMode(display=False) as counter:
        model(ids, return_hidden=True).hidden_states[-1].sum().backward()
    assert step_flops(model.config, 12, 0, 0) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        (torch.zeros(5, 16, requires_grad=True) @ model.lm_head.weight.T).sum().backward()
    assert step_flops(model.config, 0, 5, 0) == counter.get_total_flops()
    # scores and their sum of values: two products of 4 heads with 4 numbers, for each of 2 blocks, forward once and backward twice
    assert step_flops(model.config, 0, 0, 78) == 3 * 2 * (2 * 2 * 78 * 4 * 4)
    assert step_flops(model.config, 12, 5, 78, adapters=100) == pytest.approx(
        2 / 3 * step_flops(model.config, 12, 5, 0) + step_flops(model.config, 0, 0, 78) + 6 * 12 * 100
    )
    assert utilisation(3e12, 2.0, 3, 1e12) == pytest.approx(0.5)


def test_a_meter_counts_predicted_tokens_and_what_documents_see(packed):
    meter = StepMeter((), ())
    meter.add_batch(torch.zeros(()), packed)
    lengths = [7, 10, 5]
    assert meter.work.tolist() == [sum(lengths) - 3, sum(length * (length + 1) / 2 for length in lengths)]
    assert meter.flops(small().config) == step_flops(small().config, 22, 19, 28 + 55 + 15)


def test_a_run_reports_them_and_validates_by_source_and_by_kind_of_token(tmp_path):
    run(write_recipe(tmp_path), "--trainer.max_steps", 5, "--model.peak_flops", 1e9)
    row = read_curves(tmp_path / "run" / "metrics.csv")[5]
    kinds = [f"{name}/{kind}" for name in ("accuracy", "largest_logit", "output_norm") for kind in ("text", "vision")]
    assert {f"train/{name}" for name in ("accuracy", "mfu", "waiting", *kinds)} <= row.keys()
    assert {"val/loss", "val/source_loss/captions", "val/loss/text", "val/accuracy", "val/accuracy/text"} <= row.keys()
    assert 0 < row["train/mfu"] < 1 and 0 <= row["train/waiting"] < 1 and 0 <= row["train/accuracy"] <= 1
    assert row["val/loss"] == pytest.approx(row["val/source_loss/captions"])
