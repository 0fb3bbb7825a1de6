"""`emu fit-lora`: fine-tune a released model with low-rank adapters."""

from __future__ import annotations

from collections.abc import Sequence

from emu.cli.fit import tell

GIB = 2**30


def main(arguments: Sequence[str]) -> int:
    """Fine-tune, or with --memory tell what that takes.

    Returns:
        The exit code.

    Raises:
        ValueError, FileNotFoundError: the request cannot be met; nothing was trained.
    """
    from emu.training.lora import lora_module as lora

    if "--memory" not in arguments:
        tell(lora.fit(arguments))
        return 0
    memory, length = lora.need([word for word in arguments if word != "--memory"])
    parts = {"weights": memory.weights, "adapters": memory.adapters, "activations": memory.activations}
    words = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    print(f"{memory.total / GIB:.1f} GiB for rows of {length} tokens ({words}), beside what the device takes; computed")
    return 0
