"""Models that are split before they exist have the weights that they would have in one piece, and no rank ever holds the whole."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from emu import EmuConfig, EmuForCausalLM, MultimodalTokenizer
from emu.checkpoints.weights import Checkpoint
from emu.model.model import tensor_shapes
from emu.tokenizers import TextTokenizer
from emu.training import read_weights, sharded_start
from emu.training.initial_weights import go_on_with, start_from
from emu.training.parallel import shard
from emu.training.sharded_start import RecordDraws, build_sharded
from tests.test_training_reliability import free_port, in_processes

SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BILLION = {"vocab_size": 32768, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 17}
BILLION |= {"num_attention_heads": 16, "max_position_embeddings": 2048}


def seeded(build):
    torch.manual_seed(5)
    return build(), torch.rand(3)


@pytest.mark.parametrize(
    "options", [{}, {"tie_word_embeddings": True}, {"qk_norm": True, "pad_token_id": 3, "num_key_value_heads": 2}]
)
@pytest.mark.parametrize("piece", [1 << 24, 2500])
def test_draws_that_are_made_again_give_the_same_weights_and_leave_the_generator_alike(options, piece, monkeypatch):
    monkeypatch.setattr(sharded_start, "PIECE", piece)
    config = EmuConfig(**SIZES, **options)
    whole, drawn = seeded(lambda: EmuForCausalLM(config))
    again, drawn_too = seeded(lambda: build_sharded(config, lambda model: None, torch.device("cpu")))
    assert torch.equal(drawn, drawn_too)
    assert again.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in whole.state_dict().items())
    assert len(list(again.parameters())) == len(list(whole.parameters()))
    ids = torch.randint(0, 101, (1, 9))
    assert torch.equal(again(ids).logits, whole(ids).logits)


@pytest.mark.parametrize("piece", [1 << 24, 400])
def test_weights_that_are_read_some_rows_at_a_time_are_those_of_the_folder(tiny_emu, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(read_weights, "PIECE", piece)
    tiny_emu.save_pretrained(tmp_path / "model")
    model = go_on_with(tmp_path / "model", tiny_emu.tokenizer.vocabulary)
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in tiny_emu.model.state_dict().items())
    ids = torch.randint(0, 101, (1, 9))
    assert torch.equal(model(ids).logits, tiny_emu.model(ids).logits)


def test_a_draw_that_cannot_be_made_again_is_refused():
    with RecordDraws(), pytest.raises(NotImplementedError, match="draws numbers"):
        torch.empty(3).bernoulli_(0.5)


def split_over(rank, port, options):
    mesh = started(rank, 3, port)
    config = EmuConfig(**SIZES, **options)
    ours, _ = seeded(lambda: build_sharded(config, lambda model: shard(model, mesh), torch.device("cpu")))
    whole, _ = seeded(lambda: EmuForCausalLM(config))
    shares = dict(ours.named_parameters())
    same = all(isinstance(share, DTensor) for share in shares.values())
    same = same and all(torch.equal(shares[name].full_tensor(), weight) for name, weight in whole.named_parameters())
    ids = torch.randint(0, 101, (1, 9), generator=torch.Generator().manual_seed(1))
    same = same and torch.allclose(ours(ids).logits, whole(ids).logits, atol=1e-6)
    dist.destroy_process_group()
    sys.exit(0 if same else 1)


def read_over(rank, port, folder, other):
    mesh = started(rank, 3, port)
    read = []
    original = Checkpoint.rows
    Checkpoint.rows = lambda self, name, first, end: read.append((name, first, end)) or original(self, name, first, end)
    split, cpu = (lambda model: shard(model, mesh)), torch.device("cpu")
    same = True
    for make in (partial(go_on_with, folder, None), partial(start_from, folder, None, other.vocabulary, other)):
        read.clear()
        ours = make(split=split, device=cpu)
        own = {name: weight.to_local().numel() for name, weight in ours.named_parameters()}
        taken = sum((end - first) * ours.get_parameter(name)[:1].numel() for name, first, end in read)
        whole = make().state_dict()
        shares = dict(ours.named_parameters())
        same = same and all(torch.equal(share.full_tensor(), whole[name]) for name, share in shares.items())
        same = same and (make.func is start_from or taken == sum(own.values()))
        ids = torch.randint(0, 101, (1, 9), generator=torch.Generator().manual_seed(1))
        same = same and torch.isfinite(ours(ids).logits).all()
    dist.destroy_process_group()
    sys.exit(0 if same else 1)


@pytest.mark.slow
def test_ranks_read_no_more_of_a_folder_than_their_own_rows(tiny_emu, tmp_path):
    tiny_emu.save_pretrained(tmp_path / "model")
    ours = tiny_emu.tokenizer
    text = TextTokenizer.train(["a blue square", "green triangles", "a red circle"], 300)
    other = MultimodalTokenizer(text, ours.vision)
    assert in_processes(read_over, free_port(), tmp_path / "model", other, count=3) == [0, 0, 0]


def started(rank, count, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    return dist.init_device_mesh("cpu", (count, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True, "pad_token_id": 60}])
def test_ranks_hold_their_rows_of_the_same_weights(options):
    assert in_processes(split_over, free_port(), options, count=3) == [0, 0, 0]


def billion(rank, port, folder):
    mesh = started(rank, 4, port)
    config, cpu = EmuConfig(**BILLION), torch.device("cpu")
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    split = partial(shard, mesh=mesh)
    model = build_sharded(config, split, cpu) if folder is None else go_on_with(folder, None, split, cpu)
    above = memory("VmHWM") - before
    weights = 4 * sum(weight.numel() for weight in model.parameters())
    print(
        f"rank {rank}: {above / 2**20:.0f} MiB above {before / 2**20:.0f}, weights {weights / 2**20:.0f} MiB",
        file=sys.stderr,
    )
    dist.barrier()
    dist.destroy_process_group()
    sys.exit(0 if weights > 3.9e9 and above <= 1.2 * weights / 4 + 64e6 else 1)


def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def save_billion(folder):
    """A folder of as many weights in bfloat16, two files of them."""
    config = EmuConfig(**BILLION)
    config.save_pretrained(folder)
    shapes = tensor_shapes(config)
    places, names = {}, list(shapes)
    for number, some in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        file = f"model-{number}.safetensors"
        save_file({name: torch.zeros(shapes[name], dtype=torch.bfloat16) for name in some}, folder / file)
        places |= dict.fromkeys(some, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("start", ["new", "read"])
def test_four_ranks_build_a_billion_weights_in_little_more_than_their_quarter(start, tmp_path):
    folder = save_billion(tmp_path) if start == "read" else None
    assert in_processes(billion, free_port(), folder, count=4) == [0, 0, 0, 0]
