"""A small random Emu3: the files, names and order of ids of the real one, with a few hundred byte pairs and codes and widths of tens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from emu.checkpoints.weights import WEIGHTS
from emu.families.base import Weights
from emu.families.emu3.config import vision_words
from emu.families.emu3.text import RANKS_FILE, write_ranks
from emu.model_config import EmuConfig
from emu.vocabulary import Vocabulary
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.files import write_file, write_json
from emu_tokenizers.vision.naming import config_from

CORPUS = (
    "You are a helpful assistant. USER: Please describe the image. ASSISTANT: a portrait of young girl. masterpiece, film grained, best "
    "quality. lowres, bad anatomy, bad hands, text, error, (hello) world\n\ndef f(x): return x http://a.b/c_d IT'S a shiba inu 90*90 "
)
MODEL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
VISION: dict[str, Any] = {
    "codebook_size": 64,
    "embed_dim": 4,
    "latent_channels": 4,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [3],
    "hidden_size": 32,
    "num_attention_heads": 1,
}


def small_ranks(num_text: int = 0, num_merges: int = 150) -> dict[bytes, int]:
    """Ranks of a byte-level BPE fitted to a few sentences, with tokens that no text has up to `num_text`."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in (" " + word).encode()] for word in CORPUS.split(" ") * 2]
    for _ in range(num_merges):
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks.setdefault(left + right, len(ranks))
        words = [_merged(word, left, right) for word in words]
    for token in (b"(x", b"\n\n"):  # where Emu3's split and GPT-2's differ
        ranks.setdefault(token, len(ranks))
    return ranks | {b"\xff" + number.to_bytes(4, "big"): number for number in range(len(ranks), num_text)}


def _merged(word: list[bytes], left: bytes, right: bytes) -> list[bytes]:
    out: list[bytes] = []
    for part in word:
        if out and out[-1] == left and part == right:
            out[-1] = left + right
        else:
            out.append(part)
    return out


def small_vocabulary(num_text: int, num_codes: int, extras: Mapping[str, int] | None = None) -> Vocabulary:
    """Emu3's order of ids after a smaller text tokenizer: 3 + 205 special words, three marks of images, then the codes."""
    zero = num_text + 3
    controls = {"pad": num_text, "bos": zero + 203, "eos": zero + 204, "eol": zero + 200, "eof": zero + 201}
    controls |= {"image": zero + 205, "boi": zero + 206, "eoi": zero + 207}
    controls |= {name: zero + number for name, number in (extras or {}).items()}
    first = zero + 208
    return Vocabulary(first + num_codes, {"vision": (first, num_codes)}, controls)


def write_language_model(
    folder: Path,
    weights: Weights,
    config_to: Callable[[EmuConfig, Vocabulary], Mapping[str, Any]],
    *,
    extra_controls: Mapping[str, int] | None = None,
    seed: int = 0,
    num_codes: int = 64,
    **model: Any,
) -> None:
    """A language model in the original files with its text tokenizer, of Emu3 or of a family that shares them.

    Args:
        folder: to write to.
        weights: of the transformer.
        config_to: gives the family's config.json.
        extra_controls: controls beyond those of every layout -> n of their word `<|extra_n|>`.
        seed: of the weights.
        num_codes: of the codebook.
        model: overrides fields of the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks = small_ranks()
    vocabulary = small_vocabulary(len(ranks), num_codes, extra_controls)
    special = {f"{name}_token_id": vocabulary.control(name) for name in ("pad", "bos", "eos")}
    config = EmuConfig(**{**MODEL, **model, **special, "vocab_size": vocabulary.size})
    torch.manual_seed(seed)
    state = weights(config)
    write_json(folder / "config.json", config_to(config, vocabulary))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})
    write_ranks(ranks, folder / RANKS_FILE)
    write_file(folder / "emu3_vision_tokens.txt", ("\n".join(vision_words(num_codes)) + "\n").encode())


def write_vision(folder: str | Path, *, seed: int = 1, num_codes: int = 64) -> Path:
    """A vision tokenizer in the folder of baaivision/Emu3's `Emu3-VisionTokenizer`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    table = {**VISION, "codebook_size": num_codes, "model_type": "emu3_vqgan"}
    VisionTokenizer(config_from(table)).save_pretrained(folder, naming="emu3")
    write_json(folder / "preprocessor_config.json", {"min_pixels": 16 * 16, "max_pixels": 64 * 64})
    return folder
