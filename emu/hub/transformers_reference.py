"""Image generation with Emu3 as transformers documents it: the reference for tests and the peer for benchmarks.

Two passes a token, a Python list of allowed ids at every step, logits of the whole vocabulary
(https://huggingface.co/docs/transformers/model_doc/emu3). Two things differ from the page: the words of controls become ids once and
not at every step, and negative prompts carry the header of the image, as in Emu3's own script; `header=False` leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MARKS = ("<|image token|>", "<|extra_200|>", "<|extra_201|>", "<|image end|>", "<|extra_204|>", "<|endoftext|>")


def allowed_tokens(processor: Any, codes: list[int], height: int, width: int) -> Callable[[int, Tensor], Sequence[int]]:
    """The prefix function of the documentation for a grid of height x width codes."""
    image, eol, eof, eoi, eos, pad = (processor.tokenizer.convert_tokens_to_ids(word) for word in MARKS)
    forced = {(width + 1) * height + 1: eof, (width + 1) * height + 2: eoi, (width + 1) * height + 3: eos}

    def allowed(_: int, ids: Tensor) -> Sequence[int]:
        place = ids.shape[0] - int((ids == image).nonzero()[0])
        if place % (width + 1) == 0 and place <= (width + 1) * height:
            return (eol,)
        if place > (width + 1) * height:
            return (forced.get(place, pad),)
        return codes

    return allowed


@torch.no_grad()
def generate_codes(
    model: Any,
    processor: Any,
    prompts: list[str],
    negative_prompts: list[str],
    *,
    ratio: str = "1:1",
    image_area: int = 518400,
    guidance_scale: float = 3.0,
    header: bool = True,
    **sampling: Any,
) -> Tensor:
    """Codes (B, h, w) of `Emu3ForConditionalGeneration.generate`, 0-based.

    Args:
        model, processor: of transformers.
        prompts, negative_prompts: equally many.
        ratio: "width:height".
        image_area: in pixels.
        header: whether negative prompts end in the header of the image.
        sampling: of `generate`; greedy by default.
    """
    image = {"return_for_image_generation": True, "ratio": ratio, "image_area": image_area}
    shared = {"padding": True, "return_tensors": "pt"}
    inputs = processor(text=prompts, **image, **shared).to(model.device)
    negatives = processor(text=negative_prompts, **(image if header else {}), **shared).to(model.device)
    height, width = map(int, inputs["image_sizes"][0])
    codes = model.vocabulary_mapping.image_tokens
    sequences = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=height * (width + 1) + 3,
        prefix_allowed_tokens_fn=allowed_tokens(processor, codes, height, width),
        guidance_scale=guidance_scale,
        negative_prompt_ids=negatives["input_ids"],
        negative_prompt_attention_mask=negatives["attention_mask"],
        **{"do_sample": False, **sampling},
    )
    rows = sequences[:, inputs["input_ids"].shape[1] :][:, :-3].view(-1, height, width + 1)
    return rows[:, :, :-1] - codes[0]
