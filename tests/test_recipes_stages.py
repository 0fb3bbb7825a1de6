"""Recipes for graphics cards: each is planned as it stands, and a shrunken twin of it takes two steps here."""

from __future__ import annotations

import math

import pytest
import torch
import yaml

from emu import EmuForCausalLM
from emu.recipes import find_recipe
from emu.training.cli import fit
from emu.training.curves import read_curves
from emu.training.planning.machines import CARDS
from emu.training.planning.run_facts import read_facts
from emu.training.planning.run_plan import Planner, recipe_layout
from tests.shards_toys import make_album, make_documents, write

CARDS_OF = {"emu3-8b-stage1": 64, "emu3-8b-stage2-video": 64, "emu3-8b-qft": 8, "100m": 1}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
HERE = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "max_steps": 2, "log_every_n_steps": 1}


@pytest.fixture
def shards(tmp_path):
    return {
        "text": write(tmp_path / "text", make_documents(40)),
        "pictures": write(tmp_path / "pictures", [*make_album(), *make_documents(30, 1)]),
        "clips": write(tmp_path / "clips", make_album()),
    }


def twin(name, shards, folder, *words):
    """Two steps of a recipe with a small model, short rows and one process; everything else is the recipe's."""
    recipe = yaml.safe_load(find_recipe(name, ".yaml").read_text())
    sources = {source: str(shards[source]) for source in recipe["data"]["init_args"]["sources"]}
    options = {f"model.config.{key}": value for key, value in SMALL.items()} | {
        f"trainer.{k}": v for k, v in HERE.items()
    }
    options |= {"trainer.enable_progress_bar": "false", "trainer.default_root_dir": folder, "data.num_workers": 0}
    options |= {"data.sources": sources, "data.rows_per_step": 4, "data.tokenizer": "null", "model.compile": "false"}
    options |= {"model.config.max_position_embeddings": 64, "model.optimizer.warmup_steps": 1}
    if "num_key_value_heads" in recipe["model"]["config"]:
        options["model.config.num_key_value_heads"] = 2
    return fit(["--config", name, *(f"--{key}={value}" for key, value in options.items()), *words])


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS_OF)
def test_a_recipe_fits_its_cards(name):
    facts = read_facts(["--config", name])
    assert facts.processes == CARDS_OF[name] and facts.mixed == torch.bfloat16
    assert facts.rows % CARDS_OF[name] == 0 and facts.row_length == facts.config.max_position_embeddings
    plan = Planner(facts, CARDS["h100"]).planned(recipe_layout(facts, CARDS_OF[name]))
    assert plan.memory.total < 0.85 * CARDS["h100"].memory
    assert 0.5 < facts.max_steps * plan.step_seconds / 86_400 < 30


@pytest.mark.slow
def test_the_stages_of_emu3_follow_one_another(shards, tmp_path):
    first = twin("emu3-8b-stage1", shards, tmp_path / "first")
    start = (f"--model.init_from={tmp_path / 'first' / 'model'}", "--model.config.max_position_embeddings=128")
    second = twin("emu3-8b-stage2-video", shards, tmp_path / "second", *start)
    assert second.model.config.max_position_embeddings == 128
    weights = EmuForCausalLM.from_pretrained(tmp_path / "first" / "model").state_dict()
    for name, weight in second.model.state_dict().items():  # two steps of 5e-5 away
        torch.testing.assert_close(weight, weights[name], atol=1e-3, rtol=0)
    third = twin("emu3-8b-qft", shards, tmp_path / "third", f"--model.init_from={tmp_path / 'second' / 'model'}")
    rows = read_curves(tmp_path / "third" / "metrics.csv")
    assert all(math.isfinite(row["train/loss"]) for row in rows.values())
    assert third.weighting.kinds == {"text": 0.0, "control": 0.0, "vision": 1.0}
    assert first.gradients.num_skipped == third.gradients.num_skipped == 0


@pytest.mark.slow
def test_the_recipe_of_a_day_takes_steps(shards, tmp_path):
    module = twin("100m", shards, tmp_path / "run", "--model.config.tie_word_embeddings=true")
    assert module.trainer.global_step == 2 and module.weight_average is not None
    assert (tmp_path / "run" / "model" / "config.json").is_file()
