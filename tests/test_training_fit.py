"""`emu fit` as a function, on documents small enough to train on in a second."""

import logging

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from emu.data.shards import TokenizedDocument, write_manifest, write_shard
from emu.model import EmuForCausalLM
from emu.training.checkpoint_file import read_checkpoint
from emu.training.checkpoints import list_checkpoints
from emu.training.cli import EmuCLI, fit
from emu.training.curves import CurveLogger, read_curves
from emu.training.words import split_words
from emu_tokenizers.training.tokenizer_module import TokenizerModule
from tests.training_toys import TIMED, VOCABULARY, make_document, run, same, write_recipe


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


def test_a_run_leaves_curves_checkpoints_its_recipe_and_a_model(recipe, tmp_path):
    module = fit(["--config", str(recipe)])
    folder = tmp_path / "run"
    curves = read_curves(folder / "metrics.csv")
    assert [step for step in curves if "train/loss" in curves[step]] == list(range(1, 13))
    assert curves[12]["train/loss"] < curves[1]["train/loss"] - 0.5
    assert {
        "train/loss/text",
        "train/loss/vision",
        "train/source_loss/captions",
        "train/source_loss/pictures",
        "train/tokens_per_second",
    } <= set(curves[12])
    assert "val/loss" in curves[5] and "val/source_loss/captions" in curves[10]
    assert curves[2]["train/lr"] == pytest.approx(1e-2)
    assert [step for step, _ in list_checkpoints(folder / "checkpoints")] == [6, 12]
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    model = EmuForCausalLM.from_pretrained(folder / "model")
    assert same(model.state_dict(), module.model.state_dict())
    assert model.config.vocab_size == VOCABULARY.size and model.config.vocabulary == VOCABULARY.to_dict()
    assert not list(folder.rglob("*.partial"))


def test_resuming_equals_an_unbroken_run_bit_for_bit(recipe, tmp_path):
    run(recipe)
    halves = tmp_path / "halves"
    run(recipe, "--trainer.default_root_dir", halves, "--trainer.max_steps", 6)
    run(recipe, "--trainer.default_root_dir", halves, "--ckpt_path", "last")
    ours, theirs = (
        read_checkpoint(folder / "checkpoints" / "step=00000012.safetensors") for folder in (halves, tmp_path / "run")
    )
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "emu"):
        assert same(ours[part], theirs[part]), part
    curves = [read_curves(folder / "metrics.csv") for folder in (halves, tmp_path / "run")]
    timeless = [{s: {k: v for k, v in row.items() if k not in TIMED} for s, row in c.items()} for c in curves]
    assert timeless[0] == timeless[1]


def test_a_callback_may_run_the_model_between_steps(recipe, tmp_path):
    seldom = ("--trainer.log_every_n_steps", 3)
    plain = run(recipe, *seldom)
    scored = (
        "--trainer.callbacks+=tests.training_toys.ScoreBetweenSteps",
        "--trainer.default_root_dir",
        tmp_path / "scored",
    )
    assert same(run(recipe, *seldom, *scored).model.state_dict(), plain.model.state_dict())


def test_the_saved_configuration_repeats_the_run(recipe, tmp_path):
    first = run(recipe, "--trainer.max_steps", 3, "--model.optimizer.lr", 5e-3)
    again = tmp_path / "again"
    second = run(tmp_path / "run" / "config.yaml", "--trainer.default_root_dir", again)
    assert second.optimizer_options.lr == 5e-3
    assert same(first.model.state_dict(), second.model.state_dict())


def test_a_finished_run_is_not_overwritten_by_accident(recipe):
    run(recipe, "--trainer.max_steps", 1)
    with pytest.raises(ValueError, match="--ckpt_path last.*--overwrite true"):
        run(recipe)
    run(recipe, "--trainer.max_steps", 2, "--overwrite", "true")


def test_wrong_numbers_are_listed_together_before_data_is_prepared(recipe):
    with pytest.raises(ValueError, match=r"(?s)optimizer.lr is -1.*max_grad_norm is 0.*row_length is 0"):
        run(recipe, "--model.optimizer.lr", -1, "--model.max_grad_norm", 0, "--data.row_length", 0)


def test_wrong_sources_are_listed_together_before_the_first_step(recipe):
    with pytest.raises(
        ValueError, match=r"(?s)unknown sources \['sounds'\].*'captions' has documents of up to 10.*'pictures'.*13"
    ):
        run(recipe, "--data.row_length", 8, "--data.documents_per_step", "{sounds: 1, captions: 1}")


def test_training_goes_on_from_a_pretrained_model(recipe, tmp_path):
    first = run(recipe, "--trainer.max_steps", 3)
    config = yaml.safe_load(recipe.read_text())
    del config["model"]["config"]
    recipe.write_text(yaml.safe_dump(config))
    words = ["--trainer.default_root_dir", tmp_path / "more", "--model.pretrained", tmp_path / "run" / "model"]
    tuned = run(recipe, *words, "--trainer.max_steps", 1, "--model.optimizer.lr", 1e-9)
    assert torch.allclose(tuned.model.lm_head.weight, first.model.lm_head.weight, atol=1e-7)
    with pytest.raises(ValueError, match="give either model.config"):
        run(recipe, "--trainer.default_root_dir", tmp_path / "none")


def test_progress_counts_steps_of_the_whole_run_and_shows_the_loss(recipe, capsys):
    run(recipe, "--trainer.enable_progress_bar", "true", "--trainer.max_steps", 6)
    run(recipe, "--trainer.enable_progress_bar", "true", "--ckpt_path", "last")
    shown = capsys.readouterr().err
    assert "6/6" in shown and " 6/12" in shown and "12/12" in shown and "step/s" in shown
    assert "Tip" not in shown and "GPU" not in shown


def test_token_shards_are_trained_on_from_a_recipe(recipe, tmp_path):
    documents = [TokenizedDocument(make_document(5 + i % 4, 0), (1, 3)) for i in range(20)]
    write_shard(tmp_path / "shards", 0, documents, VOCABULARY, {})
    write_manifest(tmp_path / "shards", 1, VOCABULARY, {"vocabulary": VOCABULARY.fingerprint})
    config = yaml.safe_load(recipe.read_text())
    options = {
        "documents_per_step": {"mine": 6},
        "row_length": 16,
        "caption_dropout": 0.5,
        "steps_per_epoch": 2,
        "num_workers": 1,
    }
    shards = {"mine": str(tmp_path / "shards")}
    config["data"] = {
        "class_path": "emu.data.sharded.ShardData",
        "init_args": {"sources": shards, "validation": shards, **options},
    }
    recipe.write_text(yaml.safe_dump(config))
    run(recipe, "--trainer.max_steps", 3)
    curves = read_curves(tmp_path / "run" / "metrics.csv")
    assert "train/source_loss/mine" in curves[3] and "val/source_loss/mine" in curves[2]
    with pytest.raises(ValueError, match="row_lenght"):
        run(recipe, "--data.row_lenght", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.optimizer.lrr", "1"], "lrr"),
        (["--trainer.max_step", "1"], "max_step"),
        (["--model.config.hidden_size", "large"], "hidden_size"),
        (["--data.row_lenth", "3"], "row_lenth"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused(recipe, words, message):
    with pytest.raises(ValueError, match=message):
        run(recipe, *words)


def test_unknown_keys_in_the_file_are_refused(recipe):
    config = yaml.safe_load(recipe.read_text())
    config["model"]["config"]["hiden_size"] = 3
    recipe.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="hiden_size"):
        run(recipe)


def test_missing_files_are_named():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        split_words(["--config", "some/nowhere.yaml"])
    with pytest.raises(FileNotFoundError, match="no recipe 'nothing'"):
        split_words(["--config=nothing"])


def test_going_on_from_a_file_that_is_not_there_is_refused(recipe):
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        run(recipe, "--ckpt_path", "gone.ckpt")


def test_last_without_a_checkpoint_starts_from_scratch(recipe, caplog):
    with caplog.at_level(logging.WARNING, logger="emu"):
        run(recipe, "--ckpt_path", "last", "--trainer.max_steps", 1)
    assert "starting from scratch" in caplog.text


def test_accumulated_batches_log_the_mean_loss(recipe, tmp_path):
    run(recipe, "--trainer.accumulate_grad_batches", 2, "--trainer.max_steps", 2, "--trainer.log_every_n_steps", 2)
    row = read_curves(tmp_path / "run" / "metrics.csv")[2]
    assert 3.0 < row["train/loss"] < 5.0


def test_codes_in_use_are_drawn_where_there_are_some(tmp_path):
    plain, tokenizer = CurveLogger(str(tmp_path / "plain")), CurveLogger(str(tmp_path / "tokenizer"))
    for folder in ("plain", "tokenizer"):
        (tmp_path / folder).mkdir()
    for step in (1, 2):
        plain.log_metrics({"train/loss": 1.0 / step}, step)
        tokenizer.log_metrics({"train/loss": 1.0 / step, "train/codebook_use": 0.5, "train/codebook_dead": 3}, step)
    for logger in (plain, tokenizer):
        logger.finalize("success")
    assert (tmp_path / "tokenizer" / "codebook.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "plain" / "loss.png").is_file() and not (tmp_path / "plain" / "codebook.png").exists()


def test_checks_before_work_leave_a_vision_tokenizer_in_training(tmp_path):
    class Modes(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            assert all(part.training for part in pl_module.model.modules())

    words = ["--config", "digits_tokenizer", "--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false"]
    cli = EmuCLI(
        TokenizerModule, [*words, "--trainer.default_root_dir", str(tmp_path), "--trainer.limit_val_batches", "0"]
    )
    cli.trainer.callbacks.append(Modes())
    cli.fit()
