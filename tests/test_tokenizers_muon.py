"""Muon for convolutions: the steps of torch's Muon on flattened kernels, AdamW for the rest, state that survives a checkpoint."""

import copy

import pytest
import torch
from torch import nn

from emu_tokenizers.training.muon import ConvolutionMuon, orthogonal


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))


def descend(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(3, 8, 27), (2, 40, 6)])
def test_singular_values_come_close_to_one(shape):
    found = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert found.min() > 0.5 and found.max() < 1.5


def test_it_takes_the_steps_of_torchs_muon_and_adamw():
    ours, theirs = model(), model()
    descend(ours, ConvolutionMuon(ours.parameters(), lr=0.01, matrix_lr=0.02, weight_decay=0.1))
    matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in theirs.parameters() if p.ndim > 1]
    shaped = [p for p in theirs.parameters() if p.ndim > 1]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.ndim == 1], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1
    )
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        theirs.zero_grad()
        theirs(x).square().mean().backward()
        for matrix, parameter in zip(matrices, shaped, strict=True):
            matrix.grad = parameter.grad.flatten(1).clone()
        muon.step()
        adamw.step()
        with torch.no_grad():
            for matrix, parameter in zip(matrices, shaped, strict=True):
                parameter.copy_(matrix.view_as(parameter))
    for ours_p, theirs_p in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_p, theirs_p, rtol=0.02, atol=2e-3)  # torch's runs its iteration in bfloat16


def test_its_state_survives_a_checkpoint():
    straight, resumed = model(), model()
    optimizer = ConvolutionMuon(straight.parameters(), lr=0.01, matrix_lr=0.02)
    descend(straight, optimizer, 2)
    resumed.load_state_dict(straight.state_dict())
    loaded = ConvolutionMuon(resumed.parameters(), lr=0.01, matrix_lr=0.02)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(straight, optimizer, 2)
    descend(resumed, loaded, 2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_three_dimensional_convolutions_stay_with_adamw():
    net = nn.Sequential(nn.Conv3d(2, 2, 3), nn.Conv2d(2, 2, 1))
    others, matrices = ConvolutionMuon(net.parameters(), lr=0.01, matrix_lr=0.02).param_groups
    assert [p.ndim for p in matrices["params"]] == [4]
    assert {p.ndim for p in others["params"]} == {5, 1}
