"""Progress bars that a library must not draw unasked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the bars that transformers draws for every folder of weights that is read or written.

    Bars of downloads stay as the caller set them, and so do those of transformers afterwards, which switches both off together.
    """
    loading, downloads = is_progress_bar_enabled(), not are_progress_bars_disabled()
    disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if loading:
            enable_progress_bar()
            if not downloads:
                disable_progress_bars()
