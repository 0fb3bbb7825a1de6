"""A released model's folder beside transformers, on this machine: ids of words, logits, greedy codes and reconstructions.

transformers reads the folder itself where it is in its format, and else what `emu convert --to transformers` makes of it. Models with norms
of queries and keys have no Emu3 class there: their transformer is computed by Qwen3's, and their codes and pictures are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    Emu3Config,
    Emu3ForCausalLM,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from emu.checkpoints.bundled import find_model_folder
from emu.families.detection import read_config
from emu.families.transformers_emu3 import TransformersEmu3Family
from emu.families.transformers_emu3.config import text_config
from emu.generation import Engine
from emu.hub.convert import ConversionSource, convert, open_source
from emu.hub.transformers_reference import generate_codes
from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer

PROMPTS = ("a portrait of young girl.", "def f(x):\n\treturn 90*90", "two blue squares above a red circle")
NEGATIVE = "lowres, bad anatomy"
CODES_A_SIDE = 8
"""Of the picture that is drawn: enough to go wrong, and minutes for a released model on a processor."""
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Most that logits may differ by, as a share of the largest; sums in another order differ by a small part of these."""
SAME_CODES = 0.995
"""Least share of the codes of a picture that must be equal: two codes may be equally near."""
QWEN3_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "rms_norm_eps", "rope_parameters", "max_position_embeddings", "tie_word_embeddings"),
)
PIXELS = 1e-3
"""Most that decoded pixels, in [-1, 1], may differ by in float32."""


@dataclass(frozen=True)
class Finding:
    """What one comparison came to.

    Attributes:
        what: was compared.
        agrees: whether both are the same; None where it could not be compared.
        told: in numbers, or why not.
    """

    what: str
    agrees: bool | None
    told: str


@dataclass(frozen=True)
class Outputs:
    """What one library makes of the same questions; None where it has no answer.

    Attributes:
        ids: of each prompt, with the header of a picture.
        logits: (tokens, vocab_size) of the first prompt.
        codes: (prompts, h, w) drawn greedily with guidance.
        seen: codes of the test picture, (h, w).
        pixels: of those codes, (3, H, W).
    """

    ids: list[list[int]] | None = None
    logits: Tensor | None = None
    codes: Tensor | None = None
    seen: Tensor | None = None
    pixels: Tensor | None = None


def verify(path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", **options: Any) -> list[Finding]:
    """Compare a model's folder with transformers; one of the two is in memory at a time.

    Args:
        path: folder, bundled model or hub repository of any family.
        dtype, device: of both; greedy codes can only be expected to agree in float32.
        options: of `emu.hub.convert.open_source` (`vision_tokenizer`, `text_tokenizer`, `allow_pickle`, `revision`).

    Raises:
        FileNotFoundError, ValueError: the folder cannot be read; see `open_source`.
    """
    source = open_source(path, **options)
    folder = find_model_folder(path)
    if source.tokenizer is None:
        return _language_alone(source, folder, dtype, device, "the folder holds a language model alone")
    if source.config.qk_norm:
        return _language_alone(source, folder, dtype, device, "transformers has no Emu3 with norms of queries and keys")
    with ExitStack() as stack:
        try:
            place = stack.enter_context(_as_transformers(source, folder))
        except ValueError as error:  # a model of ours that its format cannot hold
            return _language_alone(source, folder, dtype, device, str(error))
        answers = _their_answers(place, dtype, device)
    return _compared(_our_answers(source.tokenizer, folder, answers, dtype, device), answers, dtype)


def _language_alone(source: ConversionSource, folder: Path, dtype: torch.dtype, device: str, why: str) -> list[Finding]:
    """Compare logits of random ids; `why` says what keeps the rest from being compared."""
    ids = torch.randint(source.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0)).to(device)
    theirs = _their_logits(source, folder, ids, dtype)
    with torch.no_grad():
        ours = _our_model(folder, dtype, device)(ids).logits[0]
    left = [Finding(what, None, why) for what in ("ids", "greedy codes", "codes of a picture", "pixels")]
    return [_compare_logits(ours, theirs, dtype), *left]


def probe_picture(side: int) -> Tensor:
    """A picture (3, side, side) in [-1, 1] of ramps, rings and noise, the same everywhere."""
    ramp = torch.linspace(-1, 1, side)
    rings = torch.sin(12 * (ramp[:, None] ** 2 + ramp**2))
    noise = torch.rand(side, side, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    return torch.stack([ramp.expand(side, side), rings, ramp[:, None] * rings]).add(noise).clamp(-1, 1)


@contextmanager
def _as_transformers(source: ConversionSource, folder: Path) -> Iterator[Path]:
    """A folder that transformers reads; written for a while where the model's own is of another format."""
    if read_config(folder).get("model_type") == Emu3Config.model_type:
        yield folder
        return
    with TemporaryDirectory(prefix="emu-verify-") as made:
        convert(source, Path(made), TransformersEmu3Family.name)
        yield Path(made)


@torch.no_grad()
def _their_answers(place: Path, dtype: torch.dtype, device: str) -> Outputs:
    model: Any = Emu3ForConditionalGeneration.from_pretrained(place, dtype=dtype)
    model = model.to(device).eval()
    processor = AutoProcessor.from_pretrained(place)
    vision = model.model.vqmodel
    side = CODES_A_SIDE * int(processor.image_processor.spatial_factor)
    shape = {"return_for_image_generation": True, "ratio": "1:1", "image_area": side * side}
    ids = [processor(text=[text], **shape)["input_ids"][0] for text in PROMPTS]
    ids = [list(map(int, one)) for one in ids]
    logits = model(input_ids=torch.tensor([ids[0]], device=device)).logits[0]
    codes = generate_codes(
        model, processor, list(PROMPTS), [NEGATIVE] * len(PROMPTS), ratio="1:1", image_area=side * side
    )
    picture = probe_picture(side).to(device, dtype)[None]
    seen = vision.encode(picture, torch.tensor([[side, side]])).image_tokens[0]
    pixels = vision.decode(seen[None])[0]
    return Outputs(ids, logits.float().cpu(), codes.cpu(), seen.cpu(), pixels.float().cpu())


@torch.no_grad()
def _our_answers(
    tokenizer: MultimodalTokenizer, folder: Path, theirs: Outputs, dtype: torch.dtype, device: str
) -> Outputs:
    model, layout = _our_model(folder, dtype, device), tokenizer.layout
    vision: Any = tokenizer.vision
    assert vision is not None and theirs.codes is not None and theirs.seen is not None
    grid = tuple(theirs.codes.shape[1:])
    header = layout.header("image", grid)
    bos = layout.vocabulary.control("bos")
    ids = [[bos, *layout.encode_text(text), *header] for text in (*PROMPTS, NEGATIVE)]
    logits = model(torch.tensor([ids[0]], device=device)).logits[0]
    prompts = [torch.tensor(one) for one in ids]
    negatives = [prompts.pop()] * len(PROMPTS)
    codes = Engine(model, layout).generate_codes(prompts, negatives, grid, modality="image", temperature=0.0)
    side = theirs.seen.shape[-1] * vision.spatial_factor
    vision = vision.to(device, dtype).eval()
    seen = vision.encode(probe_picture(side).to(device, dtype)[None])[0]
    pixels = vision.decode(theirs.seen[None].to(device))[0]
    return Outputs(ids[:-1], logits.float().cpu(), codes.cpu(), seen.cpu(), pixels.float().cpu())


def _our_model(folder: Path, dtype: torch.dtype, device: str) -> EmuForCausalLM:
    model: Any = EmuForCausalLM.from_pretrained(folder, dtype=dtype)
    placed: EmuForCausalLM = model.to(device).eval().requires_grad_(False)
    return placed


@torch.no_grad()
def _their_logits(source: ConversionSource, folder: Path, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits (tokens, vocab_size) by the class of transformers that computes the same."""
    model: Any
    if source.config.vocabulary is None and source.family.is_alone(folder, read_config(folder)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    else:
        if source.config.qk_norm:
            model = Qwen3ForCausalLM(Qwen3Config(**{name: getattr(source.config, name) for name in QWEN3_FIELDS}))
        else:
            model = Emu3ForCausalLM(Emu3TextConfig(**text_config(source.config)))
        model = model.to(dtype)
        tensors = source.checkpoint.tensors(source.language_names)
        model.load_state_dict({source.family.to_ours(name): tensor for name, tensor in tensors}, strict=False)
    found: Tensor = model.to(ids.device).eval()(input_ids=ids).logits[0]
    return found


def _compared(ours: Outputs, theirs: Outputs, dtype: torch.dtype) -> list[Finding]:
    assert ours.logits is not None and theirs.logits is not None
    same = sum(one == other for one, other in zip(ours.ids or [], theirs.ids or [], strict=True))
    return [
        Finding("ids", same == len(PROMPTS), f"{same} of {len(PROMPTS)} prompts are the same ids"),
        _compare_logits(ours.logits, theirs.logits, dtype),
        _compare_codes("greedy codes", ours.codes, theirs.codes, 1.0),
        _compare_codes("codes of a picture", ours.seen, theirs.seen, SAME_CODES),
        _compare_pixels(ours.pixels, theirs.pixels, dtype),
    ]


def _compare_logits(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> Finding:
    if ours.shape != theirs.shape:
        return Finding("logits", False, f"of shape {list(ours.shape)}, of transformers {list(theirs.shape)}")
    difference, largest = (float(value.abs().max()) for value in (ours - theirs, theirs))
    choices = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    agrees = difference <= TOLERANCES[dtype] * largest
    told = f"differ by at most {difference:.2e}, the largest is {largest:.2f}; {choices:.1%} of the likeliest ids are the same"
    return Finding("logits", agrees, told)


def _compare_codes(what: str, ours: Tensor | None, theirs: Tensor | None, least: float) -> Finding:
    assert ours is not None and theirs is not None
    if ours.shape != theirs.shape:
        return Finding(what, False, f"of shape {list(ours.shape)}, of transformers {list(theirs.shape)}")
    share = float((ours == theirs).float().mean())
    return Finding(what, share >= least, f"{int((ours == theirs).sum())} of {ours.numel()} are the same")


def _compare_pixels(ours: Tensor | None, theirs: Tensor | None, dtype: torch.dtype) -> Finding:
    assert ours is not None and theirs is not None
    difference = float((ours - theirs).abs().max())
    most = PIXELS * TOLERANCES[dtype] / TOLERANCES[torch.float32]
    return Finding("pixels", difference <= most, f"of equal codes differ by at most {difference:.2e} in [-1, 1]")
