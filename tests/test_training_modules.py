"""Which module a recipe trains, what of it is written down, and options of earlier versions."""

import sys

import pytest
import yaml

from emu.training.cli import EmuCLI
from emu.training.curves import CurveLogger, read_curves
from emu.training.module import EmuModule
from emu_tokenizers.training.tokenizer_module import TokenizerModule
from tests.training_toys import run, same, write_recipe

MODULE = '''
from emu.training import EmuModule


class Halved(EmuModule):
    """Trains on half of the loss."""

    def __init__(self, share: float = 0.5, **options):
        super().__init__(**options)
        self.share = share

    def training_step(self, batch, batch_idx):
        return self.share * super().training_step(batch, batch_idx)
'''


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_module.py").write_text(MODULE)
    yield write_recipe(tmp_path)
    sys.modules.pop("my_module", None)


def change(recipe, function):
    config = yaml.safe_load(recipe.read_text())
    function(config)
    recipe.write_text(yaml.safe_dump(config))


def read(recipe, *words):
    return EmuCLI(EmuModule, ["--config", str(recipe), *map(str, words)])


def name_it(config):
    config["model"] = {"class_path": "my_module.Halved", "init_args": {**config["model"], "share": 0.25}}


def test_a_recipe_names_its_module_and_the_saved_one_repeats_the_run(recipe, tmp_path):
    change(recipe, name_it)
    few = ("--trainer.max_steps", 2)
    first = run(recipe, *few, "--model.optimizer.lr", 5e-3)
    assert type(first).__name__ == "Halved" and first.share == 0.25 and first.optimizer_options.lr == 5e-3
    saved = tmp_path / "run" / "config.yaml"
    table = yaml.safe_load(saved.read_text())["model"]
    assert table["class_path"] == "my_module.Halved" and table["init_args"]["share"] == 0.25
    second = run(saved, "--trainer.default_root_dir", tmp_path / "again")
    assert same(first.model.state_dict(), second.model.state_dict())
    with pytest.raises(
        ValueError, match=r"model\.class_path was my_module\.Halved .* is emu\.training\.module\.EmuModule"
    ):
        run(write_recipe(tmp_path), "--trainer.max_steps", 3, "--ckpt_path", "last")


@pytest.mark.parametrize("words", [("--model", "my_module.Halved"), ("--model.class_path=my_module.Halved",)])
def test_options_name_the_module_too_and_leave_init_args_out_or_not(recipe, words):
    module = read(recipe, *words, "--model.share", 0.75).model
    assert type(module).__name__ == "Halved" and module.share == 0.75 and module.config.hidden_size == 32
    assert read(recipe, *words, "--model.init_args.share", 0.5).model.share == 0.5


def test_references_find_arguments_where_they_are_written(recipe):
    change(recipe, name_it)
    change(recipe, lambda config: config["model"]["init_args"].update(max_grad_norm="${model.init_args.share}"))
    assert read(recipe).model.gradients.max_norm == 0.25


def test_a_second_recipe_may_name_the_module_of_a_first(recipe, tmp_path):
    (tmp_path / "halved.yaml").write_text("model: {class_path: my_module.Halved, init_args: {share: 0.1}}")
    module = read(recipe, "--config", "halved.yaml").model
    assert module.share == 0.1 and module.config.hidden_size == 32


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_module.Gone", r"toy.yaml:\d+: model.class_path: .*has no 'Gone'"),
        ("nowhere.Halved", r"toy.yaml:\d+: model.class_path: .*'nowhere' cannot be imported"),
        (
            "pathlib.Path",
            r"toy.yaml:\d+: model.class_path is 'pathlib.Path'; expected the class path of a LightningModule",
        ),
    ],
)
def test_a_module_that_is_not_there_is_named_with_its_place(recipe, path, message):
    change(recipe, lambda config: config["model"].update(class_path=path))
    with pytest.raises(ValueError, match=message):
        read(recipe)


def test_options_of_earlier_versions_are_refused_by_their_new_names(tmp_path):
    words = [
        "--config",
        "digits_tokenizer",
        "--model.lr",
        "1e-3",
        "--model.muon_lr",
        "2e-2",
        "--model.gradient_clip",
        "1",
    ]
    with pytest.raises(ValueError) as refusal:
        EmuCLI(TokenizerModule, [*words, "--trainer.default_root_dir", str(tmp_path)])
    told = str(refusal.value)
    for old, new in (("lr", "optimizer.lr"), ("muon_lr", "optimizer.matrix_lr"), ("gradient_clip", "max_grad_norm")):
        assert f"model.{old} is an option of an earlier version; write model.{new}" in told


def test_options_of_adapters_without_their_module_say_its_name(recipe):
    with pytest.raises(ValueError, match=r"model\.rank is .*emu\.training\.lora\.LoraModule"):
        read(recipe, "--model.rank", 4)


def test_a_table_of_an_earlier_version_keeps_its_columns(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss,learning_rate\n1,3.0,0.1\n2,2.5,0.1\n3,2.0,0.1\n")
    logger = CurveLogger(str(tmp_path))
    logger.go_on_after(2)
    logger.log_metrics({"train/loss": 1.9}, 3)
    logger.finalize("success")
    rows = read_curves(tmp_path / "metrics.csv")
    assert rows == {
        1: {"loss": 3.0, "learning_rate": 0.1},
        2: {"loss": 2.5, "learning_rate": 0.1},
        3: {"train/loss": 1.9},
    }
