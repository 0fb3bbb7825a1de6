"""What must be the same when a run goes on from a checkpoint: the data that its position counts, and the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

SHOWN = 4
"""Most weights that do not fit that are named."""


def check_identity(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Compare what a saved position of a loader was saved under with what the loader draws from now.

    Args:
        state: of the saved loader.
        identity: plain settings of the present one, by name.

    Raises:
        ValueError: some of them differ; the message names each with both values.
    """
    changed = [
        f"{name} was {_short(state.get(name))} and is {_short(value)}"
        for name, value in identity.items()
        if state.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"the checkpoint's position is one in other data: {'; '.join(changed)}; resume with the same settings, or start anew "
            "(--overwrite true, or another folder)"
        )


def check_weights(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor], strict: bool = True) -> None:
    """Compare names and shapes of a checkpoint's weights with a module's.

    Args:
        saved: weights of the checkpoint by name.
        ours: those of the module that is to go on.
        strict: whether the checkpoint must hold all of the module's.

    Raises:
        ValueError: they do not fit; the message names the first few.
    """
    wrong = [
        f"{name} is {list(value.shape)} in the checkpoint and {list(ours[name].shape)} in the model"
        for name, value in saved.items()
        if name in ours and value.shape != ours[name].shape
    ]
    wrong += [f"the model has no {name}" for name in saved if name not in ours]
    wrong += [f"the checkpoint has no {name}" for name in ours if strict and name not in saved]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"the checkpoint is of another model than this configuration's: {'; '.join(wrong[:SHOWN])}{more}; resume with the model "
            "options of its run"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
