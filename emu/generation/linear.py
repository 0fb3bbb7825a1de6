"""Products with the weights of a model while it generates.

A step of generation multiplies few rows with all weights, so it costs what reading the weights costs. On a CPU a plain float32 product
reads them once per row; weights that oneDNN has laid out for its kernels are read once for all rows. With a fixed tile every product has
the same number of rows in any batch, which makes its result independent of the batch to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu.model import EmuForCausalLM

IdRange = tuple[int, int]
Product = Callable[[Tensor], Tensor]

TILE = 8
PACK_FROM = 2**17  # numbers in a weight from which packing pays
PAD_FROM = 2**18  # numbers in a weight from which 4 rows are cheaper than 1 to 3
SAMPLES = 4096  # numbers of a weight that are compared to notice a change
PACK_UP_TO = 8 * 2**30  # bytes of a model above which its weights are not held twice


def packing_pays(model: nn.Module) -> bool:
    """Whether products of a model's weights run faster on weights that are laid out for them."""
    parameters = list(model.parameters())
    plain = all(type(p) is nn.Parameter for p in parameters)  # quantized weights are tensors of their own kind
    on_cpu = plain and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return on_cpu and bytes_of(model) <= PACK_UP_TO and known


def bytes_of(model: nn.Module) -> int:
    """Bytes of a model's weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


class LinearBackend:
    """Layers of a model that read the same input as one product, and slices of its head.

    It is the `linear` of `EmuForCausalLM.forward_block` (see `emu.model.attention`).

    Args:
        model: its weights are copied where packing pays and for tiles, so make a new object when they change (`is_current`).
        tile: number of rows of every product, or None for whatever comes.
    """

    def __init__(self, model: EmuForCausalLM, tile: int | None = None) -> None:
        self._model = model
        self._tile = tile
        # By the layers themselves: a module is equal to itself alone, and held here it cannot give its place to another one.
        self._layers: dict[tuple[nn.Module, ...], Callable[[Tensor], tuple[Tensor, ...]]] = {}
        self._heads: dict[tuple[IdRange, ...], Product] = {}
        self._pack = packing_pays(model)
        self._copies = self._pack or tile is not None
        self._packed_state = self._state() if self._copies else None

    def _state(self) -> tuple[list[tuple[int, int]], Tensor]:
        """Where the weights are, how often they were written, and a sample of what they are."""
        parameters = [p.detach() for p in self._model.parameters()]
        # Writes through `.data` leave place and version as they are; only the numbers show them. All of them would cost a pass.
        samples = [p.flatten()[:: max(1, p.numel() // SAMPLES)].sum().double().cpu() for p in parameters]
        return [(p.data_ptr(), p._version) for p in parameters], torch.stack(samples)

    def is_current(self) -> bool:
        """Whether the model still has the weights that were copied, if any were."""
        if self._packed_state is None:
            return True
        (places, samples), (places_now, samples_now) = self._packed_state, self._state()
        return places == places_now and torch.equal(samples, samples_now)

    @property
    def by_row(self) -> bool:
        """Whether a row's products do not depend on the other rows, to the last bit."""
        return self._tile is not None

    def __call__(self, x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
        """x (..., in) -> one (..., out) per layer."""
        if layers not in self._layers:
            self._layers[layers] = self._prepare(layers)
        return self._layers[layers](x)

    def _prepare(self, layers: Sequence[nn.Module]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        if not self._copies:
            return lambda x: tuple(layer(x) for layer in layers)
        # One product of the joined weights: a step waits for memory, and x is read, padded and called for once.
        if all(type(layer) is nn.Linear and layer.bias is None for layer in layers):
            weights = [cast(Tensor, layer.weight).detach() for layer in layers]
            product, sizes = self._product(torch.cat(weights)), [len(weight) for weight in weights]
            return lambda x: _over_rows(product, x).split_with_sizes(sizes, -1)
        each = [self._tiled(layer, cast(int, layer.in_features)) for layer in layers]
        return lambda x: tuple(_over_rows(product, x) for product in each)

    def head(self, ranges: tuple[IdRange, ...]) -> Product:
        """Hidden states (..., hidden) -> logits (..., K) of the ids of these ranges, in order."""
        if not self._copies:
            return lambda x: _joined([self._model.project(x, *span) for span in ranges])
        if ranges not in self._heads:
            rows = [self._model.lm_head.weight.detach()[first : first + count] for first, count in ranges]
            product = self._product(_joined(rows, 0))
            self._heads[ranges] = lambda x: _over_rows(product, x)
        return self._heads[ranges]

    def _product(self, weight: Tensor) -> Product:
        product: Product = lambda x: F.linear(x, weight)  # noqa: E731
        if self._pack and weight.numel() >= PACK_FROM:
            product = _packed(weight, self._tile)
        return self._tiled(product, weight.shape[1])

    def _tiled(self, product: Product, width: int) -> Product:
        if self._tile is None:
            return product
        weight = self._model.lm_head.weight
        sample = torch.randn(self._tile, width, generator=torch.Generator().manual_seed(0)).to(weight)
        # Some kernels sum a row in an order that depends on its place; those go row by row.
        rows = self._tile if _rows_are_independent(product, sample) else 1
        return lambda x: _by_tiles(product, x, rows)


def _over_rows(product: Product, x: Tensor) -> Tensor:
    """A product of rows for x (..., in) -> (..., out)."""
    shape = x.shape
    return product(x.reshape(-1, shape[-1])).view(*shape[:-1], -1)


def _joined(parts: Sequence[Tensor], axis: int = -1) -> Tensor:
    return torch.cat(list(parts), axis) if len(parts) > 1 else parts[0]


def _packed(weight: Tensor, tile: int | None) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, tile or 4)
    # Four rows of a large weight are cheaper than one to three, so rows of zeros are added.
    least = 4 if weight.numel() >= PAD_FROM else 1

    def product(x: Tensor) -> Tensor:
        rows = len(x)
        if rows < least:
            x = F.pad(x, (0, 0, 0, least - rows))
        return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")[:rows]

    return product


def _rows_are_independent(product: Product, sample: Tensor) -> bool:
    """Whether a row gives the same bits at each place of a tile and next to any others."""
    whole = product(sample)
    for shift in range(1, len(sample)):
        moved = sample.roll(shift, 0)
        moved[:shift] = moved[:shift] * 3  # other neighbours, too
        if not torch.equal(product(moved)[shift:], whole[:-shift]):
            return False
    return True


def _by_tiles(product: Product, x: Tensor, rows: int) -> Tensor:
    padded = F.pad(x, (0, 0, 0, -len(x) % rows))
    return torch.cat([product(tile) for tile in padded.split(rows)])[: len(x)]
