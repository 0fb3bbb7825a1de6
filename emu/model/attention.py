"""Self-attention with grouped key and value heads.

B rows, S tokens, K cached and new tokens, N query heads, M key and value heads, D head width.

Two callables travel through every `forward`, from `EmuForCausalLM` to `EmuModel.run`, `Block`, `Attention` and `FeedForward`, so that one
set of layers serves training, transformers' generation and ours:

- `attend` is the attention of this call, made once for all layers by whoever knows which tokens see each other: `attend_packed` (training
  rows, the kernel of `emu_kernels`), `attend_masked` (a mask, a cache or dropout, torch's attention), `attend_ragged` (rows of the static
  cache of generation that take unequally many tokens), `attend_by_row` (each row of that cache by itself) or a `DeviceStep` (its rows
  with lengths that are read on the device). A cache is part of it: a layer
  hands over new keys and values and does not know what is stored.
- `linear` multiplies with weights: `linear(x, layer, layer, ...)` returns one product per layer that reads the same x. `separate` calls
  each layer, which training and adapters need; `emu.generation.linear.LinearBackend` joins them, packs their weights and fixes the number
  of rows. The modules themselves are not replaced, so that names of weights, hooks and adapters are the same in training and generation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu.model.cache import StaticCache
from emu.model.norm import RMSNorm
from emu.model.positions import Rotary, rotate
from emu.model_config import EmuConfig
from emu_kernels import attention, decode_attention, document_bounds, rotary_into

Linear = Callable[..., tuple[Tensor, ...]]
"""(x, layer, layer, ...) -> the product of x with each layer; how is the caller's to choose (packed weights, fixed tiles)."""


class Attend(Protocol):
    """Queries (B, S, N, D), keys and values (B, S, M, D) and the number of the layer -> (B, S, N, D)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor: ...


class KeyValueCache(Protocol):
    """Stores keys and values (B, M, S, D) of a layer and returns all that it holds (B, M, K, D)."""

    def update(self, keys: Tensor, values: Tensor, layer: int, /) -> tuple[Tensor, Tensor]: ...


class Attention(nn.Module):
    """Projections, optional norms of queries and keys, rotation; which tokens see each other is the caller's `attend`."""

    def __init__(self, config: EmuConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim  # type: ignore[operator]
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()  # type: ignore[arg-type]
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()  # type: ignore[arg-type]

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend | DeviceStep, linear: Linear) -> Tensor:
        """x (B, S, hidden), rotary two (B or 1, S, 1, D) -> (B, S, hidden)."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in linear(x, self.q_proj, self.k_proj, self.v_proj))
        if isinstance(attend, DeviceStep):
            out = attend(q, k, v, rotary, self)
        else:
            q, k = rotate(q, rotary, self.q_norm), rotate(k, rotary, self.k_norm)
            out = attend(q.to(v.dtype), k.to(v.dtype), v, self.layer)
        return linear(out.flatten(-2), self.o_proj)[0]


def attend_packed(segment_ids: Tensor | None) -> Attend:
    """Causal attention among the tokens of one segment (B, S), or of the whole row without segments."""
    # Kernels of a GPU alone want them; on a CPU they would cost more than they save.
    on_gpu = segment_ids is not None and segment_ids.is_cuda
    bounds = document_bounds(segment_ids.shape[1], segment_ids) if on_gpu else None  # type: ignore[union-attr]

    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        return attention(q, k, v, causal=True, segment_ids=segment_ids, bounds=bounds)

    return attend


def attend_masked(mask: Tensor | None, dropout: float = 0.0, cache: KeyValueCache | None = None) -> Attend:
    """Attention where a mask (B or 1, 1, S, K) allows it: booleans, or numbers added to the scores.

    Without a mask every query sees all keys, as a single new token does.
    """
    return partial(_attend_masked, mask, dropout, cache)


def _attend_masked(
    mask: Tensor | None, dropout: float, cache: KeyValueCache | None, q: Tensor, k: Tensor, v: Tensor, layer: int
) -> Tensor:
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if cache is not None:
        k, v = cache.update(k, v, layer)
    return _attend(mask, dropout, q, k, v)


def _attend(mask: Tensor | None, dropout: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, S, N, D), k and v (B, M, K, D) -> (B, S, N, D)."""
    tokens, groups = q.shape[1], q.shape[2] // k.shape[1]
    # The query heads of one key head become more queries of it, so that keys and values are not repeated.
    q = q.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, M, groups * S, D)
    if mask is not None and groups > 1 and tokens > 1:
        mask = mask.repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return out.unflatten(2, (groups, tokens)).permute(0, 3, 1, 2, 4).flatten(2, 3)  # (B, S, N, D)


def attend_ragged(cache: StaticCache) -> Attend:
    """Attention of a block of a static cache in which rows have unequally many tokens, which come packed, as (1, T, ...).

    Rows of few tokens are padded to the most of them; each row of many, a prompt, is computed by itself.
    """
    rows, counts = cache.rows, cache.counts
    tokens = max((count for count in counts if count <= FEW), default=0)
    parts = _parts(cache)
    many = [part for part in parts if counts[part[0]] > FEW]
    few = [(row, new) for row, new, _ in parts if counts[row] <= FEW]
    device = cache.offset.device
    there = torch.tensor([place for _, new in few for place in range(new.start, new.stop)], device=device)
    padding = torch.tensor(
        [row * tokens + place for row, new in few for place in range(counts[row] - new.stop + new.start, counts[row])],
        device=device,
    )
    mask = cache.mask(tokens) if few else None

    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        keys, values = cache.update(k.transpose(1, 2), v.transpose(1, 2), layer)
        out = torch.zeros_like(q)
        if few:
            padded = q.new_zeros(rows * tokens, *q.shape[2:]).index_copy_(0, padding, q[0, there])
            found = _attend(mask, 0.0, padded.unflatten(0, (rows, tokens)), keys, values)
            out[0].index_copy_(0, there, found.flatten(0, 1)[padding])
        for row, new, seen in many:
            own = keys[row : row + 1, :, seen], values[row : row + 1, :, seen]
            own_mask = causal_mask(new.stop - new.start, own[0].shape[2], q.device)[None, None]
            out[:, new] = _attend(own_mask, 0.0, q[:, new], *own)
        return out

    return attend


def _parts(cache: StaticCache) -> list[tuple[int, slice, slice]]:
    """Rows with tokens in this block, where these stand among all of them, and the slots that the row holds with them."""
    parts, first = list[tuple[int, slice, slice]](), 0
    for row, (begin, end, count) in enumerate(zip(cache.begins, cache.ends, cache.counts, strict=True)):
        skipped = max(begin - end, 0)  # slots of this block before the row begins
        if count > skipped:
            parts.append((row, slice(first + skipped, first + count), slice(begin, end + count)))
        first += count
    return parts


def attend_by_row(cache: StaticCache) -> Attend:
    """Attention of the next tokens of a static cache, computed for each row from its own slots alone.

    The numbers, and where they lie with respect to cache lines, are then those of the row in a batch of one, and so is the result, bit for
    bit. Those of a prompt do not depend on what follows them either (see `_attend_in_blocks`).
    """
    parts = _parts(cache)

    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        cache.update(k.transpose(1, 2), v.transpose(1, 2), layer)
        keys, values = cache.keys[layer], cache.values[layer]
        queries, out = q.flatten(0, 1), torch.zeros_like(q)
        for row, new, seen in parts:
            own = queries[None, new]
            if row in cache.prompts:
                room = slice(seen.start, None)
                found = _attend_in_blocks(own, keys[row : row + 1, :, room], values[row : row + 1, :, room], seen)
            else:
                own_keys, own_values = (_on_cache_lines(part[row : row + 1, :, seen]) for part in (keys, values))
                mask = causal_mask(own.shape[1], own_keys.shape[2], q.device)[None, None] if own.shape[1] > 1 else None
                found = _attend(mask, 0.0, own.contiguous(), own_keys, own_values)
            out.flatten(0, 1)[new] = found[0]
        return out

    return attend


def _attend_in_blocks(q: Tensor, keys: Tensor, values: Tensor, seen: slice) -> Tensor:
    """Attention of the last tokens (1, S, N, D) of a prompt, so that the numbers of a token depend on nothing that follows it.

    A kernel sums in an order that depends on how many queries and keys there are. So tokens are taken in blocks that begin at multiples of
    their size, however many of them are asked for, and see as many keys each time, those that do not exist yet masked.

    Args:
        keys, values: (1, M, slots from the beginning of the row on, D); whole blocks of them.
        seen: slots of the tokens so far, in the row.
    """
    end, tokens = seen.stop - seen.start, q.shape[1]
    first, out = end - tokens, torch.empty_like(q)
    for start in range(first - first % PROMPT_BLOCK, end, PROMPT_BLOCK):
        stop = start + PROMPT_BLOCK
        new = slice(max(start, first), min(stop, end))
        block = q.new_zeros(1, PROMPT_BLOCK, *q.shape[2:])
        block[:, new.start - start : new.stop - start] = q[:, new.start - first : new.stop - first]
        own_keys, own_values = (_on_cache_lines(part[:, :, :stop]) for part in (keys, values))
        found = _attend(causal_mask(PROMPT_BLOCK, stop, q.device)[None, None], 0.0, block, own_keys, own_values)
        out[:, new.start - first : new.stop - first] = found[:, new.start - start : new.stop - start]
    return out


FEW = 16
"""Tokens up to which rows of a ragged block are padded to each other."""
PROMPT_BLOCK = 64
"""Tokens of a prompt of which attention is computed at once, where rows must not depend on others; caches have whole blocks then."""
LINE = 64
"""Bytes of a cache line."""
EVEN_SLOTS = 16
"""So many slots of an even width are whole cache lines in any dtype."""


def _on_cache_lines(x: Tensor) -> Tensor:
    """x (1, M, K, D) with each head at the beginning of a cache line, copied where that is not so: sums may depend on where numbers lie."""
    if x.data_ptr() % LINE == 0 and x.stride(1) * x.element_size() % LINE == 0:
        return x
    slots = x.shape[2]
    room = x.new_empty(*x.shape[:2], -(-slots // EVEN_SLOTS) * EVEN_SLOTS, x.shape[3])
    room[:, :, :slots] = x
    return room[:, :, :slots]


class DeviceStep:
    """Attention of a block of N tokens to a static cache, where rows begin and what follows them being read on the device.

    It is handed queries and keys that are not turned yet: norms, rotation and the writes to the cache are one launch.

    Args:
        begin: (R,) int64, where each row of the memory begins; R may be more than the rows in use.
        slots: (R, N) int64, of the tokens.
        fused: whether blocks fuse their products with what is around them, see `Block.step`.
    """

    def __init__(self, cache: StaticCache, begin: Tensor, slots: Tensor, *, fused: bool) -> None:
        self.fused = fused
        self._keys, self._values = cache.memory
        capacity = self._keys.shape[3]
        self._places = torch.arange(len(begin), device=begin.device)[:, None] * capacity + slots
        self._begin, self._end = begin, slots[:, -1] + 1

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary, layer: Attention) -> Tensor:
        """q (R, N, heads, D), k and v (R, N, kv_heads, D) of a layer -> (R, N, heads, D)."""
        keys, values = self._keys[layer.layer], self._values[layer.layer]
        norms: dict[str, Any] = {}
        if isinstance(layer.q_norm, RMSNorm) and isinstance(layer.k_norm, RMSNorm):
            norms = {"q_weight": layer.q_norm.weight, "k_weight": layer.k_norm.weight, "eps": layer.q_norm.eps}
        q = rotary_into(q, k, v, *rotary, keys, values, self._places, **norms)
        rows = len(self._begin)
        return decode_attention(q, keys[:rows], values[:rows], self._begin, self._end)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys) bool: query i is token keys - queries + i and sees itself and what came before."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def segment_mask(segment_ids: Tensor) -> Tensor:
    """(B, 1, S, S) bool: causal within segments (B, S)."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    tokens = segment_ids.shape[1]
    return (same & causal_mask(tokens, tokens, same.device))[:, None]


def padding_mask(attention_mask: Tensor, queries: int) -> Tensor:
    """(B, 1, S, K) bool from a mask (B, K) of the tokens that exist; padding sees itself, so that nothing is divided by zero."""
    keys = attention_mask.shape[1]
    causal = causal_mask(queries, keys, attention_mask.device)
    earlier = causal.tril(keys - queries - 1)
    return ((earlier & attention_mask.bool()[:, None, :]) | (causal & ~earlier))[:, None]
