"""What a model is kept near: the weights that training starts from, or those of another folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule

from emu.model import EmuForCausalLM
from emu.model.block import Block
from emu.training.parallel import is_sharded
from emu.training.vocabularies import fingerprint


class FrozenReference:
    """A frozen model beside the one that trains.

    With adapters on a frozen model nothing is copied: the reference is that model with its adapters switched off.

    Args:
        module: whose model has the weights that training starts from.
        folder: of another model, None for those weights.

    Raises:
        ValueError: the other model is of another vocabulary, or a copy is asked for of weights that are split over ranks.
    """

    def __init__(self, module: LightningModule, folder: str | None = None) -> None:
        model = module.model
        assert isinstance(model, EmuForCausalLM)
        self._copy: EmuForCausalLM | None = None
        if folder is not None:
            self._copy = EmuForCausalLM.from_pretrained(folder, dtype=model.dtype).to(model.device)
            theirs, ours = fingerprint(self._copy.config), fingerprint(model.config)
            if theirs != ours or self._copy.config.vocab_size != model.config.vocab_size:
                raise ValueError(
                    f"the reference model {folder} is of the vocabulary {theirs} with {self._copy.config.vocab_size} ids, the model that "
                    f"trains of {ours} with {model.config.vocab_size}; name a reference that was made with the same tokenizers"
                )
        elif not getattr(model, "peft_config", None):
            if is_sharded(model):
                raise ValueError(
                    "trainer.strategy splits the model, of which the reference would be a whole copy; name its folder in "
                    "objective.reference, or use ddp"
                )
            self._copy = copy.deepcopy(model)
        if self._copy is not None:
            self._copy.eval().requires_grad_(False)

    @contextmanager
    def model(self, trained: EmuForCausalLM) -> Iterator[EmuForCausalLM]:
        """The reference, without gradients and dropout; `trained` is the model in training, which may lend its frozen weights."""
        with torch.no_grad():
            if self._copy is not None:
                self._copy.to(trained.device)  # type: ignore[arg-type]
                yield self._copy
                return
            trained.disable_adapters()
            try:
                with without_dropout(trained):
                    yield trained
            finally:
                trained.enable_adapters()


@contextmanager
def without_dropout(model: EmuForCausalLM) -> Iterator[None]:
    """The model as it is when it draws; blocks that recompute their activations go on doing so, without dropout after the context too."""
    modes = [(part, part.training) for part in model.modules()]
    recomputed = [part for part in model.modules() if isinstance(part, Block) and part.gradient_checkpointing]
    rates = [block.dropout for block in recomputed]
    keeping: list[Any] = [block._gradient_checkpointing_func for block in recomputed]
    model.eval()
    for block, keep in zip(recomputed, keeping, strict=True):
        block.training, block.dropout = True, 0.0  # they recompute in training mode alone
        if "forward" not in vars(block):  # what is compiled is recomputed as it was traced
            block._gradient_checkpointing_func = partial(_keep_quiet, block, keep)  # type: ignore[assignment]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for block, rate, keep in zip(recomputed, rates, keeping, strict=True):
            block.dropout = rate
            block._gradient_checkpointing_func = keep


def _keep_quiet(block: Block, keep: Callable[..., Any], forward: Callable[..., Any], *arguments: Any) -> Any:
    """Run a block so that the backward pass, in which the model is in training mode again, recomputes it without dropout."""

    def quiet(*inputs: Any) -> Any:
        modes = [(part, part.training) for part in block.modules()]
        block.eval()
        try:
            return forward(*inputs)
        finally:
            for part, mode in modes:
                part.training = mode

    return keep(quiet, *arguments)
