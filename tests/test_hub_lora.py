"""LoRA on a tiny stand-in of Emu3: the recipe runs, only the adapters learn, and what is exported loads."""

import json
from functools import partial

import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("peft", reason="PEFT is an extra: pip install 'emu-tokens[lora]'")

from emu import Emu, EmuForCausalLM
from emu.checkpoints.weights import Checkpoint
from emu.cli.convert import main as convert
from emu.cli.main import main as command
from emu.cli.tokenize import main as tokenize
from emu.hub.tiny_models import write
from emu.recipes import find_recipe
from emu.training import module
from emu.training.checkpoint_file import read_checkpoint
from emu.training.cli import fit


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    convert([str(write("emu3", root / "released")), str(root / "base"), "--to", "emu"])
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 40, 200)).save(root / f"{number}.png")
    lines = [json.dumps({"items": [{"caption": "a blue square"}, {"image": f"{i}.png"}]}) for i in range(4)]
    (root / "pictures.jsonl").write_text("\n".join(lines))
    words = ["--tokenizer", str(root / "base"), "--size", "32", "32", "--output", str(root / "shards")]
    assert tokenize([str(root / "pictures.jsonl"), *words]) == 0
    return root


def recipe(base, tmp_path, **model):
    table = yaml.safe_load(find_recipe("lora-emu3", ".yaml").read_text())
    table["trainer"] |= {"accelerator": "cpu", "precision": "32-true", "max_steps": 6, "log_every_n_steps": 1}
    table["trainer"] |= {
        "accumulate_grad_batches": 1,
        "default_root_dir": str(tmp_path / "run"),
        "enable_progress_bar": False,
    }
    table["model"]["init_args"] |= {
        "pretrained": str(base / "base"),
        "dtype": "float32",
        "rank": 4,
        "dropout": 0.0,
        **model,
    }
    table["model"]["init_args"]["optimizer"] |= {"lr": 1e-2, "warmup_steps": 1}
    table["data"]["init_args"] |= {"sources": {"pictures": str(base / "shards")}, "row_length": 128}
    table["data"]["init_args"] |= {"documents_per_step": {"pictures": 4}, "tokenizer": str(base / "base")}
    file = tmp_path / "lora.yaml"
    file.write_text(yaml.safe_dump(table))
    return ["--config", str(file)]


def test_only_the_adapters_learn_and_the_loss_falls(base, tmp_path):
    before = dict(Checkpoint.open(base / "base").tensors())
    module = fit(recipe(base, tmp_path))
    trained = [name for name, parameter in module.model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    state = module.model.state_dict()
    for name, tensor in before.items():
        found = state.get(name, state.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(found, tensor), name
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    losses = [float(row.split(",")[rows[0].split(",").index("train/loss")]) for row in rows[1:]]
    assert losses[-1] < losses[0]


def test_the_adapter_is_exported_alone_and_loads_on_its_base(base, tmp_path):
    module = fit(recipe(base, tmp_path))
    folder = tmp_path / "run" / "model"
    assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()
    ids = torch.randint(0, 300, (1, 9))
    wanted = module.model.eval()(ids).logits
    torch.testing.assert_close(EmuForCausalLM.from_pretrained(folder)(ids).logits, wanted)
    emu = Emu.from_pretrained(base / "base")
    assert not torch.allclose(emu.model(ids).logits, wanted)
    emu.model.load_adapter(str(folder))
    torch.testing.assert_close(emu.model.eval()(ids).logits, wanted)
    assert emu.generate_images("a blue square", size=(32, 32))[0].codes.shape == (4, 4)


def test_the_exported_folder_is_an_emu_with_the_words_of_its_base(base, tmp_path):
    fit(recipe(base, tmp_path))
    emu, plain = Emu.from_pretrained(tmp_path / "run" / "model", device="cpu"), Emu.from_pretrained(base / "base")
    assert emu.defaults == plain.defaults and emu.tokenizer.templates == plain.tokenizer.templates
    assert emu.tokenizer.fingerprints == plain.tokenizer.fingerprints
    assert emu.generate_images("a blue square", size=(32, 32))[0].codes.shape == (4, 4)


def test_adapters_learn_in_float32_under_autocast(base, tmp_path):
    words = [*recipe(base, tmp_path, dtype="bfloat16"), "--trainer.precision", "bf16-mixed"]
    module = fit(words)
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in module.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_a_merged_model_is_a_whole_one(base, tmp_path):
    module = fit(recipe(base, tmp_path, merge=True))
    emu = Emu.from_pretrained(tmp_path / "run" / "model")
    ids = torch.randint(0, 300, (1, 9))
    torch.testing.assert_close(emu.model(ids).logits, module.model.eval()(ids).logits)
    assert not torch.allclose(emu.model(ids).logits, EmuForCausalLM.from_pretrained(base / "base")(ids).logits)
    assert emu.generate_images("a blue square", size=(32, 32))[0].codes.shape == (4, 4)


def test_the_average_of_the_adapters_is_exported_and_the_work_of_frozen_matrices_counted(base, tmp_path):
    trained_module = fit(recipe(base, tmp_path, average_decay=0.5, peak_flops=1e9, merge=True))
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "step=00000006.safetensors")
    average, trained = state["emu"]["average"]["weights"], state["state_dict"]
    assert {f"model.{name}" for name in average} == set(trained)
    name = next(name for name in average if "layers.0" in name and "down_proj" in name and "lora_B" in name)
    assert not torch.equal(average[name], trained[f"model.{name}"])
    before = Checkpoint.open(base / "base").tensor("model.layers.0.mlp.down_proj.weight")
    added = 32 / 4 * average[name] @ average[name.replace("lora_B", "lora_A")]  # alpha / rank
    torch.testing.assert_close(trained_module.model.model.layers[0].mlp.down_proj.weight, before + added)
    assert "train/mfu" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
def test_compiled_blocks_with_adapters_train_as_plain_ones(base, tmp_path, checkpointing, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(module, "compile_blocks", partial(module.compile_blocks, backend="aot_eager"))
    words = recipe(base, tmp_path, checkpointing=checkpointing)
    plain = fit([*words, "--trainer.default_root_dir", str(tmp_path / "plain")])
    compiled = fit([*words, "--model.compile", "true"])
    ours, theirs = compiled.model.state_dict(), plain.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
    torch._dynamo.reset()


def test_a_run_goes_on_from_its_checkpoint(base, tmp_path):
    words = recipe(base, tmp_path)
    whole = fit(words)
    again = [*words, "--trainer.default_root_dir", str(tmp_path / "again")]
    fit([*again, "--trainer.max_steps", "3", "--model.optimizer.total_steps", "6"])
    checkpoint = next((tmp_path / "again" / "checkpoints").iterdir())
    names = read_checkpoint(checkpoint)["state_dict"]
    assert names and all("lora_" in name for name in names)
    resumed = fit([*again, "--ckpt_path", "last"])
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor)


def test_the_command_trains_and_tells_what_it_needs(base, tmp_path, capsys):
    words = recipe(base, tmp_path)
    assert command(["fit", *words, "--memory"]) == 0
    assert "GiB for rows of 128 tokens (weights " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert command(["fit", *words, "--trainer.max_steps", "1"]) == 0
    assert "1 steps done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.pretrained", "nowhere"], "nowhere"),
        (["--model.rank", "0"], "model.rank is 0"),
        (["--model.rnk", "3"], "rnk"),
        (["--model.rank", "many"], "rank"),
        (["--data.init_args.sources.pictures", "no-shards"], "no-shards"),
        (["--trainer.precision", "bf16-true"], "use bf16-mixed"),
        (["--ckpt_path", "no-such-checkpoint"], "no-such-checkpoint"),
    ],
)
def test_mistakes_are_told_without_a_traceback(words, message, base, tmp_path, capsys):
    assert command(["fit", *recipe(base, tmp_path), *words]) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


def test_a_missing_recipe_is_named(capsys):
    assert command(["fit", "--config", "no-such-recipe"]) == 2
    assert "no-such-recipe" in capsys.readouterr().err


def test_the_command_of_an_earlier_version_prints_the_one_of_today(capsys):
    assert command(["fit-lora", "--config", "lora-emu3", "--model.rank", "3"]) == 2
    assert "emu fit --config lora-emu3 --model.rank 3" in capsys.readouterr().err


def test_peft_that_is_not_installed_is_named(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("emu.training.lora.lora_module.find_spec", lambda name: None)
    assert command(["fit", *recipe(base, tmp_path)]) == 2
    assert "pip install 'emu-tokens[lora]'" in capsys.readouterr().err


def test_wrong_settings_are_named_before_work(base, tmp_path):
    with pytest.raises(ValueError, match=r"rank is 0[\s\S]*embed_tokens"):
        fit(recipe(base, tmp_path, rank=0, targets=["embed_tokens"]))
