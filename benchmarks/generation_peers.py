"""What the engine is held against: transformers' Emu3 with the same weights, called as documented and as a competent user would.

`transformers_reference` is the call of transformers' Emu3 page, without the tokenizer call that its prefix function makes for every token.
`competent_reference` is what one writes by hand for speed with the same model: a static cache, guidance as one batch of two rows a block,
the head over the codes alone, and the places that the grammar forces fed without asking the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Emu3Config, Emu3ForConditionalGeneration, StaticCache

from emu.layouts import BlockTemplate, Emu3Layout
from emu.model import EmuConfig, EmuForCausalLM
from emu.vocabulary import Vocabulary

TINY_VQ = {
    "codebook_size": 64,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "hidden_size": 32,
    "num_attention_heads": 1,
}


@dataclass(frozen=True)
class Setup:
    """Sizes of a pair of models. `divisor` scales the released vocabulary down; `grid` is what is drawn, in codes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    wide: int
    divisor: int = 1
    grid: tuple[int, ...] = (16, 16)


SETUPS = {
    "A": Setup(256, 4, 4, 2, 704),
    "B": Setup(512, 8, 8, 2, 1792, divisor=32),
    "C": Setup(1024, 16, 16, 4, 3584, divisor=8),
    "D": Setup(512, 8, 8, 2, 1792, divisor=32, grid=(8, 16, 16)),
}
"""D is B's body for clips of eight latent frames; the others draw pictures."""


def scaled_vocabulary(divisor: int) -> Vocabulary:
    """The table of the released Emu3, or one of the same proportions."""
    text, codes = 151643 // divisor, 32768 // divisor
    names = {"pad": 0, "eol": 203, "eof": 204, "bos": 206, "eos": 207, "image": 208, "boi": 209, "eoi": 210}
    controls = {name: text + place for name, place in names.items()}
    return Vocabulary(text + 211 + codes, {"vision": (text + 211, codes)}, controls, (0, text))


def build_pair(
    setup: Setup, vocabulary: Vocabulary, seed: int = 0, init: float = 0.02
) -> tuple[Emu3ForConditionalGeneration, EmuForCausalLM]:
    """transformers' model and ours with the same weights."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocabulary.size,
        "hidden_size": setup.hidden,
        "intermediate_size": setup.wide,
        "num_hidden_layers": setup.layers,
        "num_attention_heads": setup.heads,
        "num_key_value_heads": setup.kv_heads,
        "initializer_range": init,
        "pad_token_id": vocabulary.controls["pad"],
        "bos_token_id": vocabulary.controls["bos"],
        "eos_token_id": vocabulary.controls["eos"],
    }
    first, count = vocabulary.ranges["vision"]
    names = {f"<|visual token {code:06d}|>": first + code for code in range(count)}
    names |= {"<|extra_200|>": vocabulary.controls["eol"], "<image>": vocabulary.controls["image"]}
    config = Emu3Config(vq_config=TINY_VQ, text_config=sizes, vocabulary_map=names)
    config._attn_implementation = "sdpa"
    theirs = Emu3ForConditionalGeneration(config).eval()
    ours = EmuForCausalLM(EmuConfig(**sizes)).eval()
    weights = {name.replace("model.text_model.", "model."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict({name: value for name, value in weights.items() if "vqmodel" not in name})
    return theirs, ours


def transformers_reference(
    model: Emu3ForConditionalGeneration,
    vocabulary: Vocabulary,
    prompts: list[Tensor],
    negatives: list[Tensor],
    grid: tuple[int, int],
    **options: object,
) -> Tensor:
    """Codes (B, h, w) by the call of transformers' Emu3 documentation."""
    controls = vocabulary.controls
    visual_tokens = model.model.vocabulary_mapping.image_tokens
    height, width = grid

    def prefix_allowed_tokens_fn(batch_id: int, input_ids: Tensor) -> object:
        mark = torch.tensor([controls["image"]])
        eoi, eos, pad, eof, eol = (torch.tensor([controls[name]]) for name in ("eoi", "eos", "pad", "eof", "eol"))
        position = torch.nonzero(input_ids == mark, as_tuple=True)[0][0]
        offset = input_ids.shape[0] - position
        if offset % (width + 1) == 0:
            return eol
        if offset == (width + 1) * height + 1:
            return eof
        if offset == (width + 1) * height + 2:
            return eoi
        if offset == (width + 1) * height + 3:
            return eos
        if offset > (width + 1) * height + 3:
            return pad
        return visual_tokens

    ids, mask = left_padded(prompts, controls["pad"])
    negative_ids, negative_mask = left_padded(negatives, controls["pad"])
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        negative_prompt_ids=negative_ids,
        negative_prompt_attention_mask=negative_mask,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        max_new_tokens=height * (width + 1) + 3,
        **options,
    )
    template = Emu3Layout(vocabulary).block("image", grid)
    return torch.stack([template.read(row[ids.shape[1] :]) for row in out])


@torch.no_grad()
def competent_reference(
    model: Emu3ForConditionalGeneration,
    template: BlockTemplate,
    prompts: list[Tensor],
    negatives: list[Tensor],
    *,
    guidance_scale: float,
    top_k: int = 0,
    do_sample: bool = True,
) -> Tensor:
    """Codes (B, *grid) of one block after each prompt; all codes of the block lie in one range, as Emu3's do."""
    batch, body = len(prompts), model.model.text_model
    free = template.free.nonzero()[:, 0].tolist()
    first, count = int(template.first[free[0]]), int(template.count[free[0]])
    weight = model.lm_head.weight[first : first + count]
    ids, mask = left_padded([*prompts, *negatives], 0)
    length = ids.shape[1]
    mask = torch.cat([mask, torch.ones(2 * batch, len(template), dtype=torch.int64)], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache = StaticCache(config=model.config.text_config, max_cache_len=mask.shape[1])
    block = template.forced.clamp_min(0).repeat(2 * batch, 1)
    fed = torch.cat([ids, block[:, : free[0]]], 1)
    begun = 0
    for place, after in zip(free, [*free[1:], len(template)], strict=True):
        end = begun + fed.shape[1]
        hidden = body(
            input_ids=fed, attention_mask=mask[:, :end], position_ids=positions[:, begun:end], past_key_values=cache
        ).last_hidden_state
        begun = end
        wanted, unwanted = (hidden[:, -1] @ weight.T).log_softmax(-1).chunk(2)
        scores = unwanted + guidance_scale * (wanted - unwanted)
        if do_sample:
            if top_k:
                scores = scores.masked_fill(scores < scores.topk(top_k)[0][:, -1:], -torch.inf)
            drawn = torch.multinomial(scores.softmax(-1), 1)[:, 0]
        else:
            drawn = scores.argmax(-1)
        block[:, place] = (drawn + first).repeat(2)
        fed = block[:, place:after]
    assert begun == length + free[-1]
    return torch.stack([template.read(row) for row in block[:batch]])


def left_padded(rows: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of one length (B, S), and the mask of what is not padding."""
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), pad), torch.zeros(len(rows), length, dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, length - len(row) :], mask[place, length - len(row) :] = row, 1
    return ids, mask


def make_prompts(vocabulary: Vocabulary, batch: int, length: int, seed: int) -> list[Tensor]:
    """Random prompts of `length` tokens that end in a header of three text tokens."""
    generator, controls = torch.Generator().manual_seed(seed), vocabulary.controls
    header = torch.tensor([controls["boi"], 1, 2, 3, controls["image"]])
    rows = torch.randint(0, vocabulary.text[1], (batch, length - 6), generator=generator)
    return [torch.cat([torch.tensor([controls["bos"]]), row, header]) for row in rows]
