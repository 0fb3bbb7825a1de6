"""A small random `Emu3ForConditionalGeneration` with its `Emu3Processor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from emu.families.base import louder
from emu.families.emu3.text import from_ranks
from emu.families.emu3.tiny import MODEL, VISION, small_ranks, small_vocabulary
from emu.families.transformers_emu3.vocabulary import text_words, write_processor
from emu_tokenizers.bars import without_bars


def write_model(
    folder: str | Path, *, seed: int = 0, num_text: int = 0, num_codes: int = 64, split: str = "original", **model: Any
) -> Path:
    """Write model and processor; `model` overrides fields of the text configuration.

    With `num_text=151643, num_codes=32768` the ids are those of the released model.
    """
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = from_ranks(small_ranks(num_text), split)
    vocabulary = small_vocabulary(text.size, num_codes)
    settings = {**MODEL, **model, "vocab_size": vocabulary.size}
    settings |= {f"{name}_token_id": vocabulary.control(name) for name in ("pad", "bos", "eos")}
    torch.manual_seed(seed)
    whole = Emu3ForConditionalGeneration(
        Emu3Config(
            text_config=settings,
            vq_config={**VISION, "codebook_size": num_codes},
            vocabulary_map=text_words(vocabulary, text),
        )
    )
    language = {name: tensor for name, tensor in whole.named_parameters() if ".vqmodel." not in name}
    whole.load_state_dict(louder(language), strict=False)
    with without_bars():
        whole.save_pretrained(folder)
    write_processor(folder, text, vocabulary, (16 * 16, 64 * 64))
    return folder
