"""An `Emu` prepares its weights once, and again when they change."""

import copy

import pytest
import torch

import emu.generation.model_runner as runner_module
from emu import Emu
from emu.model.norm import RMSNorm


@pytest.fixture
def packed(monkeypatch):
    """How often weights were prepared."""
    made = []

    class LinearBackend(runner_module.LinearBackend):
        def __init__(self, model, tile=None):
            made.append(model)
            super().__init__(model, tile)

    monkeypatch.setattr(runner_module, "LinearBackend", LinearBackend)
    return made


@pytest.fixture
def own(tiny_emu):
    return Emu(copy.deepcopy(tiny_emu.model), tiny_emu.tokenizer, tiny_emu.defaults)


def codes(emu, **options):
    return emu.generate_images("a ball", size=(16, 16), temperature=0.0, **options)[0].codes


def fresh(emu, **options):
    return codes(Emu(emu.model, emu.tokenizer, emu.defaults), **options)


def test_a_second_call_prepares_nothing(own, packed):
    first = codes(own)
    assert torch.equal(codes(own), first) and len(packed) == 1
    own.generate_text([["a ball"]], max_new_tokens=2)
    own.generate_videos("a ball", size=(16, 16), frames=4)
    assert len(packed) == 1


CHANGES = {
    "in place": lambda model: model.model.layers[0].mlp.down_proj.weight.neg_(),
    "by data": lambda model: model.lm_head.weight.data.neg_(),
    "one number": lambda model: model.model.layers[1].self_attn.v_proj.weight[0, 0].add_(3.0),
    "another tensor": lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.flip(0))),
    "a state dict": lambda model: model.load_state_dict({k: v.flip(0) for k, v in model.state_dict().items()}),
}


@torch.no_grad()
@pytest.mark.parametrize("change", list(CHANGES))
def test_changed_weights_are_seen(change, own, packed):
    codes(own)
    CHANGES[change](own.model)
    found = codes(own)
    assert len(packed) == 2
    assert torch.equal(found, fresh(own))


def test_another_dtype_model_or_layout_is_seen(own, packed, tiny_emu):
    codes(own)
    own.model.to(torch.bfloat16)
    assert torch.equal(codes(own), fresh(own))
    own.model = copy.deepcopy(tiny_emu.model)
    assert torch.equal(codes(own), codes(tiny_emu))
    before = own._engine(None)
    own.tokenizer = copy.copy(own.tokenizer)
    assert own._engine(None) is before
    own.tokenizer.layout = copy.copy(own.tokenizer.layout)
    assert own._engine(None) is not before
    own.to("cpu")
    assert not own._engines


def test_deterministic_calls_have_an_engine_of_their_own(own, packed):
    codes(own)
    found = codes(own, deterministic=True)
    assert len(packed) == 2 and torch.equal(found, fresh(own, deterministic=True))
    assert len(own._engines) == 1


@pytest.mark.parametrize("shape", [(2, 1, 256), (8, 3, 48), (1, 7, 33), (3, 704)])
def test_norms_are_the_same_to_the_last_bit_with_and_without_a_gradient(shape):
    norm = RMSNorm(shape[-1], 1e-5)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
    for x in (torch.randn(shape), torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]):
        with torch.no_grad():
            found = norm(x)
        assert torch.equal(found, norm(x))
