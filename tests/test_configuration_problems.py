"""A wrong configuration is told whole, before any work: every problem once, in plain words, with its key, file and line."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch import Trainer
from torch.nn import Linear

from emu.configuration import import_object
from emu.configuration.objects import MOVED
from emu.configuration.written import Written, dotted
from emu.training import preflight
from emu.training.checkpoints import StepCheckpoint
from emu.training.cli import EmuCLI, fit_tokenizer
from emu.training.module import EmuModule
from emu.training.nulls import null_problems
from tests.training_toys import run, write_recipe


@pytest.fixture
def told(tmp_path):
    """The problems of a changed recipe, a line each, with places relative to the recipe."""

    def told(change, *words):
        recipe = write_recipe(tmp_path)
        config = yaml.safe_load(recipe.read_text())
        change(config)
        recipe.write_text(yaml.safe_dump(config, sort_keys=False))
        with pytest.raises(ValueError, match="this configuration cannot work") as caught:
            run(recipe, *words)
        message = str(caught.value).replace(f"{recipe}:", "line ")
        lines = recipe.read_text().splitlines()
        head, *problems = message.split("\n  - ")
        for i, problem in enumerate(problems):
            place, _, text = problem.partition(": ")
            if place.startswith("line "):
                key = lines[int(place.removeprefix("line ")) - 1].strip(" -").partition(":")[0]
                problems[i] = f"[{key}] {text}"
        assert "\n" not in "".join(problems) and "NestedArg" not in message and "Namespace" not in message
        assert len(set(problems)) == len(problems)
        return problems

    return told


def test_unknown_keys_wrong_types_and_impossible_values_come_in_one_message(told):
    def change(config):
        config["model"]["optimizer"] |= {"lr": -1, "lrr": 1}
        config["model"]["config"]["hiden_size"] = 3
        config["data"]["init_args"]["row_lenght"] = 3
        config["data"]["init_args"]["steps_per_epoch"] = "many"
        config["data"]["init_args"]["documents_per_step"] = {"sounds": 1, "captions": 3}
        config["trainer"]["max_epoch"] = 3

    problems = told(change, "--model.optimizer.name", "sgd", "--trainer.foo=3", "--data.row_length", 8, "digits")
    assert problems == [
        "'digits' belongs to no option; a recipe is named by --config digits",
        "[steps_per_epoch] data.init_args.steps_per_epoch is 'many'; expected an integer",
        "[row_lenght] data.init_args.row_lenght is not a key that exists; did you mean row_length?",
        "[hiden_size] model.config.hiden_size is not a key that exists; did you mean hidden_size?",
        "[lrr] model.optimizer.lrr is not a key that exists; did you mean lr?",
        "[max_epoch] trainer.max_epoch is not a key that exists; did you mean max_epochs?",
        "command line: model.optimizer.name is 'sgd'; expected one of adamw, muon",
        "command line: trainer.foo is not a key that exists",
        "[lr] model.optimizer.lr is -1.0; expected a positive number",
        "[documents_per_step] data.init_args.documents_per_step names the unknown sources ['sounds']; there are ['captions', 'pictures']",
        "command line: data.init_args.row_length: source 'captions' has documents of up to 10 tokens, more than row_length 8",
        "command line: data.init_args.row_length: source 'pictures' has documents of up to 13 tokens, more than row_length 8",
    ]


def test_a_learning_rate_an_unknown_source_and_a_short_row_come_together(told):
    def change(config):
        config["model"]["optimizer"]["lr"] = -1
        config["data"]["init_args"] |= {"documents_per_step": {"sounds": 1, "captions": 1}, "row_length": 8}

    assert [problem.partition("]")[0] for problem in told(change)] == [
        "[lr",
        "[documents_per_step",
        "[row_length",
        "[row_length",
    ]


def test_nulls_where_a_class_takes_none_are_told_with_all_the_rest(told):
    def change(config):
        config["model"]["optimizer"] |= {"lr": None, "matrix_lr": None, "warmup_steps": -1}
        config["model"]["objective"] = config["checkpoint"] = None
        names = ("accumulate_grad_batches", "log_every_n_steps", "val_check_interval")
        config["trainer"] |= {
            "callbacks": {"class_path": "lightning.pytorch.callbacks.ModelSummary"},
            **dict.fromkeys(names, 0),
        }

    assert sorted(told(change, "--model.max_grad_norm", "null")) == [
        "[accumulate_grad_batches] trainer.accumulate_grad_batches is 0; expected 1 or more",
        "[checkpoint] checkpoint is null; expected keys with values",
        "[log_every_n_steps] trainer.log_every_n_steps is 0; expected 1 or more",
        "[lr] model.optimizer.lr is null; expected a number, or leave the key out",
        "[objective] model.objective is null; expected a value, or leave the key out",
        "[val_check_interval] trainer.val_check_interval is 0; expected 1 or more",
        "[warmup_steps] model.optimizer.warmup_steps is -1; expected 0 or more",
        "command line: model.max_grad_norm is null; expected a number, or leave the key out",
    ]


def test_nulls_are_found_in_tables_lists_and_classes_by_path():
    grpo = {"class_path": "emu.training.objectives.GRPO", "init_args": {"reward": "len", "kl": None, "reference": None}}
    groups, unknown = {"*norm*": {"lr": None}}, {"class_path": "nowhere.At", "init_args": {"steps": None}}
    model = {
        "optimizer": {"groups": groups},
        "spikes": {"sigmas": None},
        "peak_flops": None,
        "objective": grpo,
        "new": None,
    }
    timers = [unknown, {"class_path": "emu.training.checkpoints.StepCheckpoint", "init_args": {"keep": None}}]
    tree = {"model": model, "trainer": {"callbacks": timers, "logger": None}, "seed_everything": None}
    found = null_problems({"model": EmuModule, "trainer": Trainer}, tree)
    assert [dotted(problem.path) for problem in found] == [
        "model.optimizer.groups.*norm*.lr",
        "model.spikes.sigmas",
        "model.objective.init_args.kl",
        "trainer.callbacks[1].init_args.keep",
    ]
    assert null_problems({"trainer": Trainer}, {"trainer": [3]}) == [
        ("trainer is [3]; expected keys with values", ("trainer",))
    ]


@pytest.mark.slow
def test_what_a_mistake_leaves_behind_is_not_told_of_something_else(told):
    problems = told(
        lambda config: config["model"]["optimizer"].update(groups=[{"pattern": "norm"}]), "--seed_everything", 1
    )
    assert [problem.partition(" is ")[0] for problem in problems] == ["[pattern] model.optimizer.groups[0].pattern"]


@pytest.mark.parametrize("text", ['a: "\x07"', "? [a, b]\n: 3", "? \n: 3", "a: &a [*a]"])
def test_what_yaml_or_a_key_cannot_be_names_the_file(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text.replace("\\n", "\n"))
    with pytest.raises(ValueError, match=r"^[^\n]*recipe\.yaml[^\n]*; |^[^\n]*recipe\.yaml(:\d+)?: not YAML: [^\n]*$"):
        Written().add_file(tmp_path / "recipe.yaml")


def test_what_cannot_be_resolved_stands_among_the_others(told):
    def change(config):
        config["model"]["config"] |= {"hidden_size": "${.intermediate_size}", "intermediate_size": "${.hidden_size}"}
        config["model"]["max_grad_norm"] = "${oc.env:EMU_TEST_UNSET}"
        config["checkpoint"]["keeps"] = 3

    problems = told(change, "--model.optimizer.lr", -1)
    assert len(problems) == 5
    assert "refers back to itself" in problems[0] and "EMU_TEST_UNSET" in problems[2]
    assert problems[3:] == [
        "[keeps] checkpoint.keeps is not a key that exists; did you mean keep?",
        "command line: model.optimizer.lr is -1.0; expected a positive number",
    ]


def test_arguments_that_are_missing_are_named_with_their_class(told):
    def change(config):
        del config["data"]["init_args"]["row_length"]
        config["trainer"]["callbacks"] = [
            {"class_path": "tests.training_toys.ScoreBetweenSteps"},
            {"class_path": "tests.test_training_reliability.Poison", "init_args": {"stepz": [3]}},
        ]

    assert sorted(told(change)) == [
        "[init_args] data.init_args.row_length is missing; tests.training_toys.ToyData needs it",
        "[init_args] trainer.callbacks[1].init_args.steps is missing; tests.test_training_reliability.Poison needs it",
        "[stepz] trainer.callbacks[1].init_args.stepz is not a key that exists; did you mean steps?",
    ]


def test_parts_that_refuse_to_be_built_do_not_hide_the_others(told):
    def change(config):
        config["model"]["config"]["num_attention_heads"] = 5
        config["model"]["optimizer"]["lr"] = -1
        config["trainer"]["accelerator"] = "gpu"
        config["data"]["init_args"]["row_length"] = 8
        config["checkpoint"]["keep"] = 0

    found = " | ".join(told(change))
    assert "hidden_size 32 is not a multiple of num_attention_heads 5" in found and "keep is 0" in found
    assert "more than row_length 8" in found


def test_a_tokenizers_recipe_is_told_in_the_same_way(tmp_path):
    recipe = tmp_path / "tokenizer.yaml"
    recipe.write_text(
        "trainer: {max_steps: 1, accelerator: cpu}\n"
        "model:\n  max_grad_norm: fast\n  config: {spatial_factors: 8}\n"
        "data:\n  class_path: emu_tokenizers.training.picture_data.PictureData\n  init_args:\n    sizes: 3\n"
    )
    with pytest.raises(ValueError, match="cannot work") as caught:
        fit_tokenizer(["--config", str(recipe)])
    assert str(caught.value).replace(str(recipe), "R").splitlines()[1:] == [
        "  - R:3: model.max_grad_norm is 'fast'; expected a number",
        "  - R:4: model.config.spatial_factors is not a key that exists; did you mean spatial_factor?",
        "  - R:8: data.init_args.sizes is not a key that exists; did you mean size?",
    ]


def test_data_that_nobody_names_is_asked_for(told):
    assert told(lambda config: config.pop("data")) == ["data is missing; name the class of the data and what it takes"]


@pytest.mark.parametrize(
    ("class_path", "reason"),
    [
        ("no_such_module.Data", "No module named 'no_such_module'"),
        ("tests.training_toys.Nothing", "has no 'Nothing'"),
        ("emu.model.EmuConfig", "expected the class path of a LightningDataModule"),
    ],
)
def test_a_class_that_cannot_be_had_is_told_with_the_reason(told, class_path, reason):
    problems = told(lambda config: config["data"].update(class_path=class_path))
    assert len(problems) == 1 and reason in problems[0]


def test_documents_longer_than_the_models_positions_are_refused_with_both_numbers(told):
    def change(config):
        config["model"]["config"]["max_position_embeddings"] = 12

    (problem,) = told(change)
    assert problem.startswith("[max_position_embeddings] source 'pictures' has documents of up to 13 tokens")
    assert "positions for 12" in problem and "to 13 or more" in problem


def test_a_strategy_whose_weights_stay_in_other_processes_is_refused_with_the_one_to_use(told):
    (problem,) = told(lambda config: config["trainer"].update(strategy="ddp_spawn", devices=2))
    assert "use ddp" in problem


def test_a_run_whose_folder_is_a_file_or_full_is_refused_before_the_first_step(told, tmp_path, monkeypatch):
    (tmp_path / "run").write_text("in the way")
    problems = told(lambda config: None)
    assert problems and all(problem.startswith("[default_root_dir]") and "is a file" in problem for problem in problems)
    (tmp_path / "run").unlink()
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    (problem,) = told(lambda config: None)
    assert "0.0 GiB free" in problem and "checkpoint.keep" in problem


def test_a_model_that_could_not_be_written_is_refused_before_the_first_step(told, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").write_text("in the way")
    (problem,) = told(lambda config: None)
    assert "model is a file" in problem and "--export" in problem
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("export", [".", "checkpoints", "../things"])
def test_a_model_never_replaces_a_run_or_other_things(tmp_path, export):
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "notes.txt").write_text("mine")
    checkpoints = StepCheckpoint(folder=str(tmp_path / "run" / "checkpoints"))
    trainer = SimpleNamespace(default_root_dir=tmp_path / "run", checkpoint_callbacks=[checkpoints], fast_dev_run=False)
    module = Linear(2, 2)
    module.model = SimpleNamespace(save_pretrained=print)
    (problem,) = preflight.export_problems(trainer, module, tmp_path / "run" / export)
    assert problem.path == ("export",) and "would replace all of it" in problem.text
    (tmp_path / "things" / "config.json").write_text("{}")
    assert not preflight.export_problems(trainer, module, tmp_path / "run" / "model")
    assert not preflight.export_problems(trainer, module, tmp_path / "things")


def test_a_module_in_the_working_folder_is_found_from_any_start(tmp_path, monkeypatch):
    (tmp_path / "my_toys.py").write_text(
        "from tests.training_toys import ToyData\n\n\nclass MyData(ToyData):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    elsewhere = [path for path in sys.path if path not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1]), *elsewhere])
    recipe = write_recipe(tmp_path)
    cli = EmuCLI(EmuModule, ["--config", str(recipe), "--data.class_path", "my_toys.MyData"])
    assert type(cli.datamodule).__name__ == "MyData"
    assert import_object("my_toys.MyData") is type(cli.datamodule)
    monkeypatch.delitem(sys.modules, "my_toys")


def test_extensions_of_installed_packages_are_loaded_and_broken_ones_named(monkeypatch):
    from importlib.metadata import EntryPoint

    from emu.configuration import extensions

    def found(value):
        extensions.load_extensions.cache_clear()
        monkeypatch.setattr(
            extensions,
            "entry_points",
            lambda group: [EntryPoint("mine", value, group)] if group == "emu.extensions" else [],
        )
        return extensions.load_extensions

    assert found("tests.training_toys")() == ("mine",)
    with pytest.raises(ValueError, match=r"extension 'mine' \(no_such_module\).*No module named"):
        found("no_such_module")()
    extensions.load_extensions.cache_clear()


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_class_path_of_an_earlier_version_is_told_its_new_name(old, new):
    with pytest.raises(ValueError, match=f"'{re.escape(old)}' is of an earlier version; write {re.escape(new)}"):
        import_object(old)
    assert import_object(new).__name__ == old.rpartition(".")[2]


def test_a_saved_configuration_of_an_earlier_version_says_what_to_write(tmp_path):
    recipe = tmp_path / "config.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"class_path": "emu.demo.worlds.WorldsData"}}))
    with pytest.raises(
        ValueError, match=r"emu\.demo\.worlds\.WorldsData' is of an earlier version; write emu\.worlds\.training_data"
    ):
        EmuCLI(EmuModule, ["--config", str(recipe)])
