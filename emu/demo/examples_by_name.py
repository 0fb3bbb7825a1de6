"""The names under which `emu evaluate` finds the data of the bundled models; what reads it is loaded when it is asked for."""

from __future__ import annotations

from emu.evaluation.suites.training_examples import EXAMPLES, TrainingExamples
from emu.multimodal_tokenizer import MultimodalTokenizer


def digit_examples(tokenizer: MultimodalTokenizer) -> TrainingExamples:
    """Handwritten digits in the demo's five tasks."""
    from emu.demo.bundled_examples import DigitExamples

    return DigitExamples(tokenizer)


def emoji_examples(tokenizer: MultimodalTokenizer) -> TrainingExamples:
    """People in five skin tones, animals and things, in four tasks."""
    from emu.demo.bundled_examples import EmojiExamples

    return EmojiExamples(tokenizer)


def register_examples() -> None:
    """Put them into the table of `emu evaluate`."""
    EXAMPLES.register("digits", digit_examples)
    EXAMPLES.register("pictures", emoji_examples)
