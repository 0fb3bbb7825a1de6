"""Key-value cache of sequences that advance together, each with a beginning and an end of its own."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from emu.model.positions import EmuRotaryEmbedding, Rotary
from emu.model_config import EmuConfig

SPARE = 1.25
"""How much more memory than is needed a cache keeps, so that it need not grow again."""


class StaticCache:
    """Keys and values of `rows` sequences.

    Row r begins at slot `offset[r]`; slots before it do not exist for it, and the position of a token is its slot minus the offset. Rows
    may end at one slot (right-aligned prompts of unequal length) or each at its own. So sequences of unequal length take their next tokens
    in the same call, and each row computes what it would compute alone.

    Rows can be added, moved and taken away (`extend`, `keep`), in memory that `reserve` makes.

    Args:
        config: sizes of the model.
        rows: number of sequences.
        capacity: slots per row.
        dtype, device: of keys and values.

    Attributes:
        keys, values: per layer, (rows, kv_heads, capacity, head_dim).
        ends: slots written in each row, those before its beginning included.
        length: the largest of them.
        begins: the offsets as numbers.
        counts: how many tokens of the block that is being written each row has.
        prompts: the rows of which they belong to a prompt.
        packed: (T,) int64, where a block is ragged: the places of its tokens among (rows * longest); None where rows have equally many.
    """

    def __init__(
        self, config: EmuConfig, rows: int, capacity: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        assert config.num_key_value_heads is not None and config.head_dim is not None
        self._sizes = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self._dtype, self._device = dtype, torch.device(device)
        self.ends, self.counts, self._expected = [0] * rows, [0] * rows, list[int]()
        self.prompts = frozenset[int]()
        self.packed: Tensor | None = None
        self._allocate(rows, capacity)
        self.offset = torch.zeros(rows, dtype=torch.int64, device=device)
        self.truncate(0)

    def _allocate(self, rows: int, capacity: int) -> None:
        self._keys, self._values = self._empty(rows, capacity), self._empty(rows, capacity)
        self._measure(capacity)

    def _empty(self, rows: int, capacity: int) -> Tensor:
        layers, heads, width = self._sizes
        return torch.zeros((layers, rows, heads, capacity, width), dtype=self._dtype, device=self._device)

    def _measure(self, capacity: int) -> None:
        self.capacity = capacity
        self._slots = torch.arange(capacity, device=self._device)
        self._angles: Rotary | None = None
        self._show()

    def _show(self) -> None:
        self.keys, self.values = ([layer[: self.rows] for layer in part] for part in (self._keys, self._values))

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return len(self.ends)

    @property
    def length(self) -> int:
        """Slots that the longest row has written."""
        return max(self.ends, default=0)

    @property
    def offset(self) -> Tensor:
        """(rows,) int64: the slot at which each row begins."""
        return self._offset

    @offset.setter
    def offset(self, offset: Tensor) -> None:
        if tuple(offset.shape) != (self.rows,):
            raise ValueError(f"offset has shape {tuple(offset.shape)}; the cache has {self.rows} rows")
        self._offset = offset.to(device=self._device, dtype=torch.int64)
        self.begins: list[int] = offset.tolist()
        self.ragged = any(self.begins)
        missing = self._slots < self._offset[:, None]  # (rows, capacity)
        self._bias = torch.zeros(missing.shape, dtype=self._dtype, device=self._device)
        self._bias.masked_fill_(missing, float("-inf"))

    def positions(self, tokens: int) -> Tensor:
        """(rows or 1, tokens) positions of the next tokens; 0 where a slot does not exist for its row. Of a ragged block (1, T)."""
        if self.packed is not None:
            rows, slots = self._packed_rows_slots
            return (slots - self._offset[rows]).clamp_min(0)[None]
        slots = self._next_slots(tokens)
        return (slots - self._offset[:, None]).clamp_min(0) if self.ragged else slots

    def _next_slots(self, tokens: int) -> Tensor:
        """(rows or 1, tokens) slots of the next tokens."""
        if self._even:
            return self._slots[None, self.length : self.length + tokens]
        return self._ends[:, None] + self._slots[:tokens]

    def rotary(self, embedding: EmuRotaryEmbedding, tokens: int) -> Rotary:
        """Angles of the next tokens, (rows or 1, tokens, 1, head_dim) each, from a table that is made once."""
        positions = self.positions(tokens)
        if embedding.depends_on_length:
            return embedding(self._keys, positions)
        cos, sin = self.angles(embedding)
        return cos[positions], sin[positions]

    def angles(self, embedding: EmuRotaryEmbedding) -> Rotary:
        """Angles of all positions, (positions, 1, head_dim) each, where they do not depend on the length of a sequence."""
        if self._angles is None:
            # Whole vectors of positions: the tail of an array may be computed by other instructions than its body.
            places = torch.arange(-(-self.capacity // 64) * 64, device=self._device)
            self._angles = embedding(self._keys, places)
        return self._angles

    def mask(self, tokens: int) -> Tensor | None:
        """(rows or 1, 1, tokens, end of the longest row) numbers to add to the scores of the next tokens; None when all is seen.

        A slot before the beginning of its row sees itself alone, so that no softmax is empty. Tokens that a row of a ragged block lacks
        may see anything.
        """
        if tokens == 1 and self._even and self._stop == self.length + 1:
            bias = self._bias[:, None, None, : self._stop]
            return bias if self.ragged and self.length else None
        new, all_slots = (
            self._next_slots(tokens)[..., None],
            self._slots[: self._stop],
        )  # (rows or 1, tokens, 1), (end,)
        bias = torch.zeros(len(new), tokens, self._stop, dtype=self._dtype, device=self._device)
        bias.masked_fill_(all_slots > new, float("-inf"))
        if self.ragged:
            bias = (bias + self._bias[:, None, : self._stop]).masked_fill_(all_slots == new, 0)
        return bias[:, None]

    def expect(self, counts: Sequence[int], prompts: Collection[int] = ()) -> None:
        """Say how many tokens of the next block each row has; the others are padding at its end, and are not computed.

        Args:
            prompts: rows whose tokens belong to a prompt, of which `attend_by_row` gives the same numbers however it is cut into blocks.
        """
        self._expected, self.prompts = list(counts), frozenset(prompts)

    def begin(self, tokens: int) -> None:
        """Reserve the slots of the next tokens: as many in each row, or those that `expect` named.

        Raises:
            ValueError: fewer are left.
        """
        self._count(tokens)
        counts, self.packed = self.counts, None
        if any(count != tokens for count in counts):
            self._pack(tokens)
        if not self._even or self.packed is not None:
            self._targets = self._target_rows(tokens)

    def _count(self, tokens: int) -> None:
        counts, self._expected = self._expected or [tokens] * self.rows, []
        stop = max((end + count for end, count in zip(self.ends, counts, strict=True)), default=0)
        if stop > self.capacity:
            raise ValueError(
                f"{tokens} tokens after {self.length} do not fit a cache of {self.capacity} slots; make it with a larger capacity"
            )
        self.counts, self._stop = counts, stop

    def has_room_on_device(self, tokens: int) -> bool:
        """Whether `begin_on_device` can take so many tokens: all rows have as much room, and each begins where it ends or before."""
        return self.length + tokens <= self.capacity and all(map(int.__le__, self.begins, self.ends))

    def begin_on_device(self, tokens: int, rows: int) -> list[list[int]]:
        """Reserve slots as `begin` does, for a pass that reads on the device where rows begin and end, and writes N slots of each row.

        What a row of fewer tokens gets beyond them is written again by its next pass before anything attends to it.

        Args:
            rows: of the memory, those in use and some more.

        Returns:
            Beginnings and ends of these rows.
        """
        self._count(tokens)
        more = [0] * (rows - self.rows)
        return [[*self.begins, *more], [*self.ends, *more]]

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers, (layers, rows, kv_heads, capacity, head_dim) each, with rows that are not in use."""
        return self._keys, self._values

    def _pack(self, tokens: int) -> None:
        """Number the tokens that there are, where rows have unequally many."""
        places = [row * tokens + place for row, count in enumerate(self.counts) for place in range(count)]
        packed = torch.tensor(places, dtype=torch.int64, device=self._device)
        rows = torch.div(packed, tokens, rounding_mode="floor")
        self._packed_rows_slots = rows, self._ends[rows] + packed - rows * tokens
        self.packed = packed

    def _target_rows(self, tokens: int) -> Tensor:
        """Where each vector of a block goes in keys as (all rows * kv_heads * capacity, head_dim)."""
        heads = torch.arange(self._sizes[1], device=self._device)[:, None]
        if self.packed is not None:
            rows, slots = self._packed_rows_slots
            return ((rows * self._sizes[1] + heads) * self.capacity + slots).flatten()  # (kv_heads * T,)
        rows = torch.arange(self.rows, device=self._device)[:, None, None]
        return ((rows * self._sizes[1] + heads) * self.capacity + self._next_slots(tokens)[:, None]).flatten()

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write (rows, kv_heads, new tokens, head_dim) of a layer, of a ragged block (1, kv_heads, T, head_dim).

        Returns:
            (rows, kv_heads, end of the longest row, head_dim).
        """
        if self._even and self.packed is None:
            self.keys[layer][:, :, self.length : self._stop] = keys
            self.values[layer][:, :, self.length : self._stop] = values
        else:
            for whole, new in ((self._keys[layer], keys), (self._values[layer], values)):
                width = new.shape[-1]
                whole.view(-1, width).index_copy_(0, self._targets, new.reshape(-1, width))
        return self.keys[layer][:, :, : self._stop], self.values[layer][:, :, : self._stop]

    def commit(self) -> None:
        """Count the tokens of the block as written, after its last layer."""
        self.prompts = frozenset()
        self.end_at([end + count for end, count in zip(self.ends, self.counts, strict=True)])

    def end_at(self, ends: list[int]) -> None:
        """Say where each row ends, of which everything before is written."""
        self.ends = ends
        self.packed = None
        self._even = len(set(ends)) <= 1
        self._own_ends: Tensor | None = None

    @property
    def _ends(self) -> Tensor:
        """(rows,) int64, copied to the device when it is asked for."""
        if self._own_ends is None:
            self._own_ends = torch.tensor(self.ends, dtype=torch.int64, device=self._device)
        return self._own_ends

    def truncate(self, length: int | Tensor | Sequence[int]) -> None:
        """Forget what was written after the first `length` slots; no memory moves.

        Args:
            length: slots that stay, one number for all rows, or one of each. Each row goes on after its own end.

        Raises:
            ValueError: fewer slots were written.
        """
        given = length.tolist() if isinstance(length, Tensor) else length
        ends = [given] * self.rows if isinstance(given, int) else list(given)
        for end, written in zip(ends, [self.length] * self.rows, strict=True):
            if not 0 <= end <= written:
                raise ValueError(f"cannot truncate a cache of {written} written slots to {end}")
        self.end_at(ends)

    def is_finite(self, row: int, length: int) -> bool:
        """Whether keys and values of a row's first tokens are numbers, neither NaN nor infinity; waits for a GPU."""
        first = self.begins[row]
        # One sum instead of a test of each number: NaN and infinity go through it. Half precision would overflow.
        wide = torch.promote_types(self._dtype, torch.float32)
        keys, values = (
            whole[:, row, :, first : first + length].sum(dtype=wide) for whole in (self._keys, self._values)
        )
        return math.isfinite(keys + values)

    def share(self, source: int, row: int, length: int) -> None:
        """Let a row that holds nothing begin with the first tokens of another row."""
        first, start = self.begins[source], self.begins[row]
        for whole in (self._keys, self._values):
            whole[:, row, :, start : start + length] = whole[:, source, :, first : first + length]
        self.end_at([start + length if number == row else end for number, end in enumerate(self.ends)])

    def reserve(self, rows: int, capacity: int) -> None:
        """Make memory for so many rows of so many slots; what is there stays. Where it is enough already, nothing happens."""
        most = max(rows, self._keys.shape[1]), max(capacity, self.capacity)
        if most == (self._keys.shape[1], self.capacity):
            return
        # Rows and slots that were needed before will be needed again, and a copy costs a pass: they stay where they are few.
        if most[0] * most[1] > SPARE * rows * capacity:
            most = rows, capacity
        # One after the other, so that only one of them is there twice at a time.
        self.keys, self.values = [], []
        self._keys = self._moved(self._keys, *most)
        self._values = self._moved(self._values, *most)
        self._measure(most[1])
        self.offset = self._offset

    def _moved(self, part: Tensor, rows: int, capacity: int) -> Tensor:
        new, ends = self._empty(rows, capacity), self.length
        new[:, : self.rows, :, :ends] = part[:, : self.rows, :, :ends]
        return new

    def extend(self, begins: Sequence[int]) -> None:
        """Add rows that hold nothing yet and begin at these slots, in memory that `reserve` made."""
        self._change([*self.begins, *begins], [*self.ends, *begins])

    def keep(self, order: Sequence[int]) -> None:
        """Go on with some of the rows alone: row i holds what row `order[i]` held.

        Args:
            order: each its own number, or one that is not smaller than the length of the list, so that rows move into gaps.
        """
        for row, origin in enumerate(order):
            if row != origin:
                seen = slice(self.begins[origin], self.ends[origin])
                self._keys[:, row, :, seen] = self._keys[:, origin, :, seen]
                self._values[:, row, :, seen] = self._values[:, origin, :, seen]
        self._change([self.begins[origin] for origin in order], [self.ends[origin] for origin in order])

    def clear(self, rows: slice | int) -> None:
        """Forget the numbers of rows of the memory, in use or not: what is masked is multiplied by zero, which NaN survives."""
        self._keys[:, rows] = 0
        self._values[:, rows] = 0

    def _change(self, begins: list[int], ends: list[int]) -> None:
        self.end_at(ends)
        self._show()
        self.offset = torch.tensor(begins, dtype=torch.int64, device=self._device)
