"""A model made ready to run: its weights packed, the threads that a pass is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from emu.generation.generation_stats import GenerationStats
from emu.generation.limits import beyond_positions, warn_caller
from emu.generation.linear import TILE, LinearBackend, bytes_of, packing_pays
from emu.generation.threads import threads_of
from emu.generation.window_choice import FastestWindow
from emu.layouts import Layout
from emu.model import EmuForCausalLM


class ModelRunner:
    """One model and one layout; see `Engine` for the arguments and errors."""

    def __init__(
        self, model: EmuForCausalLM, layout: Layout, *, deterministic: bool = False, check_length: bool = True
    ) -> None:
        if model.config.vocab_size != layout.vocabulary.size:
            raise ValueError(
                f"the model has {model.config.vocab_size} ids, the layout's vocabulary {layout.vocabulary.size}; use those trained together"
            )
        self.model, self.layout, self.deterministic = model, layout, deterministic
        self.check_length = check_length
        self.last_stats: GenerationStats | None = None
        self._linear: LinearBackend | None = None
        self._windows = FastestWindow(model.device)
        self._available = 1

    def __repr__(self) -> str:
        return f"Engine({type(self.model).__name__}, {self.layout!r}, deterministic={self.deterministic})"

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made of the weights: it belongs to this process and to this very model, and is made again."""
        return {**self.__dict__, "_linear": None}

    @property
    def bytes_to_copy(self) -> int:
        """Bytes of weights that the next call lays out anew for its products; they stay from then on."""
        copies = self._linear is None and (self.deterministic or packing_pays(self.model))
        return bytes_of(self.model) if copies else 0

    def _check_length(self, longest: int) -> None:
        problem = beyond_positions(longest, self.model.config.max_position_embeddings)
        if problem and self.check_length:
            warn_caller(f"sequences of {problem}; expect poor results")

    def linear(self) -> LinearBackend:
        """How the model's weights are multiplied, made anew where they have changed."""
        if self._linear is None or not self._linear.is_current():
            self._linear = LinearBackend(self.model, TILE if self.deterministic else None)
        return self._linear

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in eval mode, and threads of torch as many as before when it ends."""
        training, threads = self.model.training, torch.get_num_threads()
        self._available = threads
        self.model.eval()
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            self.model.train(training)

    def use_threads(self, tokens: int) -> None:
        """Within `evaluating`: let torch use as many threads as a pass over N tokens of all rows together fills."""
        if self.model.device.type == "cpu":
            chosen = threads_of(self._work(tokens), self._available)
            if chosen != torch.get_num_threads():
                torch.set_num_threads(chosen)

    def _work(self, tokens: int) -> int:
        """Multiply-adds of the largest product of a pass over N tokens of all rows together."""
        config, ranges = self.model.config, self.layout.vocabulary.ranges.values()
        widest = max([2 * config.intermediate_size, *(count for _, count in ranges)])  # gate and up are one product
        # A pass over few rows waits for the weights as long as it would take to multiply some more. Tiles have as many rows in any batch,
        # and so their products as many threads: results must not depend on the batch.
        return config.hidden_size * widest * (TILE if self.deterministic else max(TILE, tokens))
