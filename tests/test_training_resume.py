"""What may change when a run is resumed is applied and said; what may not is refused by name."""

import os
import shutil
import signal
from unittest.mock import patch

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from emu.data import FunctionSource, ListSource, Mixture, PackedLoader
from emu.data.shards import TokenizedDocument, write_manifest, write_shard
from emu.model import EmuForCausalLM
from emu.stopping import Stopped
from emu.training.checkpoint_file import read_checkpoint, write_checkpoint
from emu.training.cli import fit_tokenizer
from emu.training.curves import read_curves
from emu.training.resume import changes, recorded, refused
from emu_tokenizers.training.shapes_data import ShapesData
from tests.training_toys import VOCABULARY, make_document, run, same, write_recipe

WORDS = ("--trainer.max_steps", 6, "--export", "null", "--ckpt_path", "last")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of 3 of its 12 steps; copy it."""
    folder = tmp_path_factory.mktemp("half")
    run(write_recipe(folder), "--trainer.max_steps", 3, "--export", "null")
    return folder


@pytest.fixture
def recipe(half, tmp_path):
    shutil.copytree(half / "run", tmp_path / "run")
    return write_recipe(tmp_path)


def test_other_rates_and_decays_are_applied_and_said(recipe, tmp_path, capsys):
    changed = ("--model.optimizer.lr", 5e-3, "--model.optimizer.weight_decay", 0.3, "--model.optimizer.beta2", 0.9)
    module = run(recipe, *WORDS, *changed)
    said = capsys.readouterr().err.splitlines()
    assert {
        "model.optimizer.lr: 0.01 -> 0.005",
        "model.optimizer.weight_decay: 0.1 -> 0.3",
        "model.optimizer.beta2: 0.95 -> 0.9",
        "trainer.max_steps: 3 -> 6",
    } <= set(said)
    decayed, kept = module.trainer.optimizers[0].param_groups
    assert decayed["weight_decay"] == 0.3 and kept["weight_decay"] == 0 and decayed["betas"] == (0.9, 0.9)
    rates = {
        step: row["train/lr"]
        for step, row in read_curves(tmp_path / "run" / "metrics.csv").items()
        if "train/loss" in row
    }
    whole = run(write_recipe(tmp_path), *WORDS[:4], *changed, "--trainer.default_root_dir", tmp_path / "whole")
    wanted = {
        step: row["train/lr"]
        for step, row in read_curves(tmp_path / "whole" / "metrics.csv").items()
        if "train/loss" in row
    }
    assert [rates[step] for step in (4, 5, 6)] == [wanted[step] for step in (4, 5, 6)]
    assert rates[3] == 2 * wanted[3], "what was trained before stays as it was logged"
    assert not same(module.model.state_dict(), whole.model.state_dict())


FIXED = {
    "data.init_args.row_length": (32, 40),
    "data.init_args.seed": (0, 7),
    "data.init_args.steps_per_epoch": (5, 6),
    "data.init_args.documents_per_step": ("{'captions': 3, 'pictures': 4}", "{captions: 2, pictures: 4}"),
    "model.config.hidden_size": (32, 64),
    "model.optimizer.name": ("adamw", "muon"),
    "trainer.accumulate_grad_batches": (1, 2),
    "seed_everything": (3, 4),
}
"""What a run rests on: its value in the run of the checkpoint, and another one."""


def test_what_a_run_rests_on_is_refused_by_name(recipe):
    words = [word for key, (_, now) in FIXED.items() for word in (f"--{key}", now)]
    with pytest.raises(ValueError) as refusal:
        run(recipe, *WORDS, *words)
    lines = str(refusal.value).splitlines()[1:]
    assert len(lines) == len(FIXED)
    for key, (before, _) in FIXED.items():
        assert any(f"{key} was {before} in the run of this checkpoint and is " in line for line in lines), key


@pytest.mark.slow
def test_workers_change_nothing_and_may_change(recipe, capsys):
    run(recipe, *WORDS, "--data.num_workers", 1)
    assert "data.init_args.num_workers: 0 -> 1" in capsys.readouterr().err


def test_several_changes_are_refused_together():
    before = {"trainer": {"logger": "secret", "max_steps": 3}, "model": {"config": {"hidden_size": 8, "z_loss": 0.0}}}
    now = {
        "trainer": {"max_steps": 9},
        "model": {"config": {"hidden_size": 9, "z_loss": 0.1}},
        "data": {"init_args": {"seed": 1}},
    }
    found = changes(recorded(before), recorded(now))
    assert [str(change) for change in found] == [
        "trainer.max_steps: 3 -> 9", "model.config.hidden_size: 8 -> 9", "model.config.z_loss: 0.0 -> 0.1"
    ]  # fmt: skip
    (problem,) = refused(found)
    assert problem.path == ("model", "config", "hidden_size")
    assert "secret" not in str(recorded(before))


def test_an_average_of_weights_cannot_begin_in_the_middle():
    found = changes(
        {"model": {"average_decay": 0.0, "optimizer": {"matrix_lr": 0.1}}},
        {"model": {"average_decay": 0.9, "optimizer": {"matrix_lr": 0.2}}},
    )
    assert [problem.path[-1] for problem in refused(found)] == ["average_decay"]


def test_a_model_of_another_shape_gets_one_sentence(recipe, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step=00000003.safetensors"
    content = read_checkpoint(path)
    del content["configuration"]
    write_checkpoint(path, content)
    with pytest.raises(
        ValueError, match=r"^[^\n]*of another model.*embed_tokens.weight is \[\d+, 32\] .* \[\d+, 64\][^\n]*$"
    ):
        run(recipe, *WORDS, "--model.config.hidden_size", 64)


def test_a_checkpoint_of_a_vision_tokenizer_is_refused(recipe, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step=00000003.safetensors"
    content = read_checkpoint(path)
    del content["emu"]
    write_checkpoint(path, content)
    with pytest.raises(ValueError, match="not written in the training of a transformer"):
        run(recipe, *WORDS)


class Known(ListSource):
    def __init__(self, documents, identity):
        super().__init__(documents)
        self.identity = identity


@pytest.mark.parametrize(
    ("source", "row_length", "named"),
    [
        (Known([make_document(5, 0)] * 4, "b"), 24, r"sources\.a was \[4, 'a'\] and is \[4, 'b'\]"),
        (Known([make_document(5, 0)] * 5, "a"), 24, r"sources\.a was \[4, 'a'\] and is \[5, 'a'\]"),
        (
            FunctionSource(lambda index, key: make_document(5, 0), 4),
            24,
            r"sources\.a was \[4, 'a'\] and is \[4, None\]",
        ),
        (Known([make_document(5, 0)] * 4, "a"), 25, "row_length was 24 and is 25"),
    ],
)
def test_a_position_in_other_documents_is_refused(source, row_length, named):
    state = PackedLoader(Mixture({"a": Known([make_document(5, 0)] * 4, "a")}, {"a": 2}), 24).state_dict()
    with pytest.raises(ValueError, match=named):
        PackedLoader(Mixture({"a": source}, {"a": 2}), row_length).load_state_dict(state)


def test_a_position_in_other_pictures_is_refused():
    state = ShapesData(pictures=40).train_dataloader().state_dict()
    with pytest.raises(ValueError, match="pictures was 40 and is 41"):
        ShapesData(pictures=41).train_dataloader().load_state_dict(state)


@pytest.mark.slow
def test_the_exported_model_of_a_resumed_run_is_that_of_an_unbroken_one(recipe, tmp_path):
    module = run(recipe, "--ckpt_path", "last", "--trainer.max_steps", 4)
    model = EmuForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert torch.equal(model.lm_head.weight, module.model.lm_head.weight)


def write_shards(folder, first):
    documents = [TokenizedDocument(make_document(5 + i % 4, first), (1, 3)) for i in range(20)]
    write_shard(folder, 0, documents, VOCABULARY, {})
    write_manifest(folder, 1, VOCABULARY, {"vocabulary": VOCABULARY.fingerprint})


def test_folders_of_shards_may_move_but_not_be_exchanged(tmp_path, capsys):
    for name, first in (("shards", 0), ("others", 2)):
        write_shards(tmp_path / name, first)
    recipe = write_recipe(tmp_path)
    table = yaml.safe_load(recipe.read_text())
    options = {"documents_per_step": {"mine": 6}, "row_length": 16, "caption_dropout": 0.5, "steps_per_epoch": 5}
    sources = {"mine": str(tmp_path / "shards")}
    table["data"] = {"class_path": "emu.data.sharded.ShardData", "init_args": {"sources": sources, **options}}
    recipe.write_text(yaml.safe_dump(table))
    run(recipe, "--trainer.max_steps", 2, "--export", "null")
    (tmp_path / "shards").rename(tmp_path / "moved")
    words = (*WORDS, "--trainer.max_steps", 3)
    with pytest.raises(ValueError, match=r"position is one in other data: sources\.mine was"):
        run(recipe, *words, "--data.sources.mine", tmp_path / "others")
    moved = ("--data.sources.mine", tmp_path / "moved")
    with pytest.raises(ValueError, match=r"data\.init_args\.caption_dropout was 0\.5"):
        run(recipe, *words, *moved, "--data.caption_dropout", 0.1)
    run(recipe, *words, *moved)
    assert "data.init_args.sources: " in capsys.readouterr().err


def shapes_recipe(folder):
    config = {
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 4, "log_every_n_steps": 1, "limit_val_batches": 0},
        "model": {
            "config": {
                "spatial_factor": 4, "temporal_factor": 4, "base_channels": 8, "channel_multiplier": [1, 1], "num_res_blocks": 1,
                "attn_resolutions": [], "norm_groups": 4, "latent_channels": 4, "embed_dim": 4, "codebook_size": 16,
            },
            "optimizer": {"lr": 2e-3}, "quantizer_warmup_steps": 1, "average_decay": 0.9,
        },
        "data": {
            "class_path": "emu_tokenizers.training.shapes_data.ShapesData",
            "init_args": {"pictures": 8, "held_out": 1, "images_per_step": 2, "steps_per_epoch": 3},
        },
    }  # fmt: skip
    config["trainer"] |= {"enable_progress_bar": False, "default_root_dir": str(folder / "run")}
    (folder / "shapes.yaml").write_text(yaml.safe_dump(config))
    return folder / "shapes.yaml"


def fit_shapes(recipe, *words):
    with patch("emu.training.curves.plot_panels"):
        return fit_tokenizer(["--config", str(recipe), "--export", "null", *map(str, words)])


def test_vision_tokenizers_resume_by_the_same_rules(tmp_path, capsys):
    recipe = shapes_recipe(tmp_path)
    whole = fit_shapes(recipe, "--trainer.default_root_dir", tmp_path / "whole").state_dict()
    with pytest.raises(Stopped, match="saved at step 2"):
        fit_shapes(recipe, "--trainer.callbacks", f"{__name__}.NoMoreThan")
    last = ("--ckpt_path", "last")
    other = ("--data.images_per_step", 4, "--model.config.base_channels", 16, "--model.average_decay", 0)
    with pytest.raises(ValueError, match=r"(?s)base_channels was 8.*average_decay was 0\.9.*images_per_step was 2"):
        fit_shapes(recipe, *last, *other)
    module = fit_shapes(recipe, *last)
    assert same(module.state_dict(), whole)
    fit_shapes(recipe, *last, "--trainer.max_steps", 5, "--model.optimizer.weight_decay", 0.5)
    assert "model.optimizer.weight_decay: 0.01 -> 0.5" in capsys.readouterr().err


class NoMoreThan(Callback):
    """Ends a run after two steps, in the middle of an epoch, as SIGTERM does."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
