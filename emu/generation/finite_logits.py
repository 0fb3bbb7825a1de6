"""Logits that are not numbers raise an error, and nothing is drawn from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class FiniteLogits:
    """Looks at all logits of a session.

    On a CPU each is looked at before it is drawn from. Elsewhere looking would wait for the device at every token, so that sums are
    collected and `check` looks at them, before anything that was drawn leaves the engine.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[int, Tensor]] = []

    def passed(self, logits: Tensor, position: int) -> Tensor:
        """The same logits (G, sequences, ...), of the token at `position` of the longest sequence.

        Raises:
            FloatingPointError: they hold NaN or infinity.
        """
        # One sum instead of a test of each number: NaN and infinity go through it. Half precision would overflow.
        total = logits.sum(dtype=torch.promote_types(logits.dtype, torch.float32))
        if logits.device.type != "cpu":
            self._sums.append((position, total))
        elif not math.isfinite(float(total)):
            raise _broken(position, logits.dtype, logits)
        return logits

    def check(self) -> None:
        """Look at what was collected.

        Raises:
            FloatingPointError: logits held NaN or infinity; the message names the first token.
        """
        collected, self._sums = self._sums, []
        if collected:
            fine = torch.stack([total for _, total in collected]).isfinite().tolist()
            for (position, total), is_fine in zip(collected, fine, strict=True):
                if not is_fine:
                    raise _broken(position, total.dtype)


def _broken(position: int, dtype: torch.dtype, logits: Tensor | None = None) -> FloatingPointError:
    where = ""
    if logits is not None:
        rows = (~logits.isfinite()).flatten(2).any(-1).any(0).nonzero()[:, 0].tolist()  # of (G, sequences, ...)
        where = f" of sequence {', '.join(map(str, rows[:8]))} of the batch" if rows else ""
    return FloatingPointError(
        f"the logits of token {position}{where} hold NaN or infinity ({dtype}), so nothing can be drawn; the weights are damaged "
        "(compare their files: Emu.from_pretrained(..., verify=True)) or the numbers too large for the dtype (try float32 or bfloat16)"
    )
