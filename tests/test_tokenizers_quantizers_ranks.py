"""Two processes share one codebook, although the quantizer was made before their process group."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from emu_tokenizers.distributed import mean_over_ranks
from emu_tokenizers.quantizers import codebook
from emu_tokenizers.quantizers.learned import IndexQuantizer, SimQuantizer
from emu_tokenizers.quantizers.vq import VectorQuantizer

STEPS = 4


def data(step: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(2, 4, 40, generator=generator) + rank


def make() -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(4, 16, kmeans_iters=2, dead_code_ratio=0.0).train()


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quantizer, resetting = make(), VectorQuantizer(4, 64, dead_code_ratio=0.5).train()
    learnt = {"index": IndexQuantizer(4, 64, dead_code_ratio=0.5).train(), "sim": SimQuantizer(4, 16).train()}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for step in range(STEPS):
        quantizer(data(step, rank))
        resetting(data(step, rank))
        for quantizer_of_table in learnt.values():
            quantizer_of_table(data(step, rank))
    chance = torch.tensor([1.0 - rank, float(rank)], requires_grad=True)
    mean = mean_over_ranks(chance)
    mean.square().sum().backward()
    found = {"codes": quantizer.weight, "resetting": resetting.weight, "mean": mean.detach(), "grad": chance.grad}
    found |= {"index": learnt["index"].embedding.weight.detach(), "sim": learnt["sim"].weight.detach()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_keep_one_codebook_and_average_the_entropy():
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(run_rank, args=(folder,), nprocs=2, start_method="fork")
        first, second = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first["codes"], second["codes"])
    for name in ("resetting", "index", "sim"):
        assert torch.equal(first[name], second[name])
    assert first["mean"].tolist() == second["mean"].tolist() == [0.5, 0.5]
    assert all(torch.isfinite(found["grad"]).all() for found in (first, second))


def test_a_rank_more_is_a_larger_batch(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(run_rank, args=(folder,), nprocs=2, start_method="fork")
        together = torch.load(Path(folder) / "0.pt")["codes"]
    alone = make()
    first_rows = data(0, 0).movedim(1, -1).reshape(-1, 4)
    means = codebook.draw_rows(first_rows, 16, seed=0)  # two ranks start their k-means from rank 0's vectors
    monkeypatch.setattr(codebook, "draw_rows", lambda rows, number, seed: means)
    for step in range(STEPS):
        alone(torch.cat([data(step, rank) for rank in range(2)]))
    torch.testing.assert_close(alone.weight, together, rtol=1e-4, atol=1e-5)
