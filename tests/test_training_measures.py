"""What curves say beside the loss: accuracy, logits and norms by kind of token, arithmetic, waiting; and validation by source and kind."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from emu.model import EmuConfig, EmuForCausalLM
from emu.model.predictions import predictions_of_hidden
from emu.packing import pack
from emu.training.curves import read_curves
from emu.training.flops import step_flops, utilisation
from emu.training.meters import StepMeter, TokenKinds, over_ranks
from emu.training.parallel import Ranks
from emu.training.progress import latest_loss
from emu.training.reporting import Reporter
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


class Twins(Ranks):
    """Two ranks that hold the same."""

    def sum(self, tensor):
        return 2 * tensor


def test_ranks_that_go_on_share_the_sums_of_all_of_them(packed):
    meter, kinds = StepMeter(("text",), ()), torch.zeros(packed.input_ids.numel(), dtype=torch.int64)
    meter.add_batch(torch.tensor(0.25), packed)
    meter.add_metrics({"reward": torch.tensor(3.0)}, torch.tensor(0.5))
    meter.kinds.add(torch.ones_like(packed.loss_weights).flatten(), packed.loss_weights.flatten(), kinds)
    meter.add_step(2.0)
    saved, ranks = over_ranks(meter.state_dict(), Twins(2)), [StepMeter(("text",), ()) for _ in range(2)]
    for number, one in enumerate(ranks):
        one.load_state_dict(saved)
        if number:
            one.leave_to_others()
    assert ranks[0].row() == {"loss": 0.5, "gradient_norm": 2, "row_fill": 22 / 40, "loss/text": 1, "reward": 3}
    assert ranks[1].counts.tolist() == [0, 0, 0, 2] and ranks[1].num_steps == 1
    assert not any(sums.any() for sums in (ranks[1].work, ranks[1].kinds.sums, ranks[1].metrics["reward"]))


def test_speed_is_that_of_training_in_this_part_of_the_run(packed, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("emu.training.reporting.time", SimpleNamespace(perf_counter=lambda: now[0]))
    rows = []
    logger = SimpleNamespace(log_metrics=lambda row, step: rows.append(row))
    trainer = SimpleNamespace(train_dataloader=None, loggers=[logger], global_step=3, log_every_n_steps=1)
    reporter = Reporter(1e6)
    reporter.watch(small())
    reporter.start(None, (), Ranks())
    reporter.meter.add_batch(torch.zeros(()), packed)
    reporter.meter.add_step(1.0)
    state = reporter.snapshot()
    reporter.start(None, (), Ranks())
    reporter.go_on(state, first=True)
    reporter.on_fit_start(trainer, None)
    for _ in range(2):
        reporter.meter.add_batch(torch.zeros(()), packed)
        reporter.end_step(1.0, 0.1, 0)
        now[0] += 2
        reporter.on_validation_start(trainer, None)
        now[0] += 50
        reporter.on_validation_end(trainer, None)
        reporter.on_train_batch_end(trainer, None, None, None, 0)
    assert [row["train/tokens_per_second"] for row in rows] == [11, 11] and rows[0]["train/row_fill"] == 22 / 40
    assert rows[0]["train/mfu"] == pytest.approx(rows[1]["train/mfu"], rel=1e-12)


def test_the_bar_shows_the_loss_of_a_batch_however_many_make_a_step():
    trainer = SimpleNamespace(accumulate_grad_batches=4, progress_bar_metrics={})
    assert latest_loss(trainer, {"loss": torch.tensor(3.0) / 4}) == 3 and latest_loss(trainer, None) is None


def test_a_run_reports_them_and_validates_by_source_and_by_kind_of_token(tmp_path):
    run(write_recipe(tmp_path), "--trainer.max_steps", 5, "--model.peak_flops", 1e9)
    row = read_curves(tmp_path / "run" / "metrics.csv")[5]
    kinds = [f"{name}/{kind}" for name in ("accuracy", "largest_logit", "output_norm") for kind in ("text", "vision")]
    assert {f"train/{name}" for name in ("accuracy", "mfu", "waiting", *kinds)} <= row.keys()
    assert {"val/loss", "val/source_loss/captions", "val/loss/text", "val/accuracy", "val/accuracy/text"} <= row.keys()
    assert 0 < row["train/mfu"] < 1 and 0 <= row["train/waiting"] < 1 and 0 <= row["train/accuracy"] <= 1
    assert row["val/loss"] == pytest.approx(row["val/source_loss/captions"])
