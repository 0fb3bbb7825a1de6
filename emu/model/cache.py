"""Key-value cache of a fixed size, for sequences whose length is known when they begin."""

from __future__ import annotations

import torch
from torch import Tensor

from emu.model.positions import EmuRotaryEmbedding, Rotary
from emu.model_config import EmuConfig


class StaticCache:
    """Keys and values of `rows` sequences that end at the same slot.

    Rows are right-aligned: row r begins at slot `offset[r]`, slots before it do not exist for it, and the position of a token is
    its slot minus the offset. So prompts of unequal length take the next token in the same call, and each row computes what it
    would compute alone.

    Args:
        config: sizes of the model.
        rows: number of sequences.
        capacity: slots per row.
        dtype, device: of keys and values.

    Attributes:
        keys, values: per layer, (rows, kv_heads, capacity, head_dim).
        length: slots written so far, the same for all rows until `truncate` tells them apart; then the longest.
        begins: the offsets as numbers.
    """

    def __init__(
        self, config: EmuConfig, rows: int, capacity: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)  # type: ignore[arg-type]
        self._values = torch.zeros_like(self._keys)
        self.keys, self.values = list(self._keys), list(self._values)
        self.rows, self.capacity, self.length = rows, capacity, 0
        self._new = 0  # tokens of the block that is being written
        self._slots = torch.arange(capacity, device=device)
        self._every_row = torch.arange(rows, device=device)[:, None]
        self._ends: Tensor | None = None  # slots written in each row, once they differ
        self._angles: Rotary | None = None
        self.offset = torch.zeros(rows, dtype=torch.int64, device=device)

    @property
    def offset(self) -> Tensor:
        """(rows,) int64: the slot at which each row begins."""
        return self._offset

    @offset.setter
    def offset(self, offset: Tensor) -> None:
        if tuple(offset.shape) != (self.rows,):
            raise ValueError(f"offset has shape {tuple(offset.shape)}; the cache has {self.rows} rows")
        self._offset = offset.to(device=self._slots.device, dtype=torch.int64)
        self.begins: list[int] = offset.tolist()
        self.ragged = any(self.begins)
        missing = self._slots < self._offset[:, None]  # (rows, capacity)
        self._bias = torch.zeros(missing.shape, dtype=self._keys.dtype, device=missing.device)
        self._bias.masked_fill_(missing, float("-inf"))

    def starts(self) -> list[int]:
        """The slot after the last token of each row."""
        return [self.length] * self.rows if self._ends is None else self._ends.tolist()

    def _next_slots(self, tokens: int) -> Tensor:
        """(rows or 1, tokens) slots of the next tokens."""
        if self._ends is None:
            return self._slots[None, self.length : self.length + tokens]
        return self._ends[:, None] + self._slots[:tokens]

    def positions(self, tokens: int) -> Tensor:
        """(rows or 1, tokens) positions of the next tokens; 0 where a slot does not exist for its row."""
        slots = self._next_slots(tokens)
        return (slots - self._offset[:, None]).clamp_min(0) if self.ragged else slots

    def rotary(self, embedding: EmuRotaryEmbedding, tokens: int) -> Rotary:
        """Angles of the next tokens, (rows or 1, tokens, 1, head_dim) each, from a table that is made once."""
        positions = self.positions(tokens)
        if embedding.depends_on_length:
            return embedding(self._keys, positions)
        if self._angles is None:
            # Whole vectors of positions: the tail of an array may be computed by other instructions than its body.
            places = torch.arange(-(-self.capacity // 64) * 64, device=self._slots.device)
            cos, sin = embedding(self._keys, places)
            self._angles = cos, sin
        cos, sin = self._angles
        return cos[positions], sin[positions]

    def mask(self, tokens: int) -> Tensor | None:
        """(rows or 1, 1, tokens, length + tokens) numbers to add to the scores of the next tokens; None when all is seen.

        A slot before the beginning of its row sees itself alone, so that no softmax is empty.
        """
        end = self.length + tokens
        if tokens == 1 and self._ends is None:
            bias = self._bias[:, None, None, :end]
            return bias if self.ragged and self.length else None
        new, all_slots = self._next_slots(tokens)[..., None], self._slots[:end]  # (rows or 1, tokens, 1), (end,)
        bias = torch.zeros(len(new), tokens, end, dtype=self._keys.dtype, device=new.device)
        bias.masked_fill_(all_slots > new, float("-inf"))
        if self.ragged:
            bias = (bias + self._bias[:, None, :end]).masked_fill_(all_slots == new, 0)
        return bias[:, None]

    def begin(self, tokens: int) -> None:
        """Reserve the slots of the next tokens.

        Raises:
            ValueError: fewer are left.
        """
        if self.length + tokens > self.capacity:
            raise ValueError(
                f"{tokens} tokens after {self.length} do not fit a cache of {self.capacity} slots; make it with a larger capacity"
            )
        self._new = tokens

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write (rows, kv_heads, new tokens, head_dim) of a layer; returns (rows, kv_heads, length + new tokens, head_dim)."""
        start, end = self.length, self.length + self._new
        if self._ends is None:
            self.keys[layer][:, :, start:end] = keys
            self.values[layer][:, :, start:end] = values
        else:
            slots = self._next_slots(self._new)
            self.keys[layer][self._every_row, :, slots] = keys.transpose(1, 2)
            self.values[layer][self._every_row, :, slots] = values.transpose(1, 2)
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def commit(self) -> None:
        """Count the tokens of the block as written, after its last layer."""
        if self._ends is not None:
            self._ends = self._ends + self._new
        self.length, self._new = self.length + self._new, 0

    def copy_row(self, row: int, source: StaticCache, source_row: int) -> None:
        """Take over all that a row of another cache holds, at the slots where this row begins."""
        first, start = source.begins[source_row], self.begins[row]
        end = start + source.length - first
        self._keys[:, row, :, start:end] = source._keys[:, source_row, :, first : source.length]
        self._values[:, row, :, start:end] = source._values[:, source_row, :, first : source.length]

    def truncate(self, length: int | Tensor) -> None:
        """Forget what was written after the first `length` slots; no memory moves.

        Args:
            length: slots that stay, one number for all rows or (rows,) int64. After the latter each row goes on after its own end.

        Raises:
            ValueError: fewer slots were written.
        """
        if isinstance(length, Tensor):
            self._ends = length.to(self._slots.device)
            length = int(length.max())
        else:
            self._ends = None
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} written slots to {length}")
        self.length = length
