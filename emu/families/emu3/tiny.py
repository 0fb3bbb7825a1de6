"""Small random models in the formats of released ones, for tests, benchmarks and a first try without downloads.

They have the files, names and id order of the real thing, a text tokenizer of a few hundred byte pairs, a few hundred codes and widths of
tens.

    python -m emu.families.emu3.tiny transformers FOLDER
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from emu.checkpoints.weights import WEIGHTS
from emu.families.emu3.byte_pairs import RANKS_FILE, from_ranks, write_ranks
from emu.families.emu3.config import NEWER_CONTROLS, original_config
from emu.families.emu3.vocabulary import vision_words
from emu.families.emu35.vision import ibq_config, ibq_state
from emu.families.transformers_emu3.processor_files import text_words, write_processor
from emu.model import EmuConfig, EmuForCausalLM
from emu.vocabulary import Vocabulary
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.bars import without_bars
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


def small_vocabulary(num_text: int, num_codes: int, form: str = "emu3") -> Vocabulary:
    """Emu3's order of ids behind a smaller text tokenizer: 3 + 205 special words, three marks of images, then the codes."""
    zero = num_text + 3
    controls = {"pad": num_text, "bos": zero + 203, "eos": zero + 204, "eol": zero + 200, "eof": zero + 201}
    controls |= {"image": zero + 205, "boi": zero + 206, "eoi": zero + 207}
    if form == "emu3.5":
        controls |= {name: zero + number for name, number in NEWER_CONTROLS.items()}
    first = zero + 208
    return Vocabulary(first + num_codes, {"vision": (first, num_codes)}, controls)


def write_transformers(
    folder: str | Path, *, seed: int = 0, num_text: int = 0, num_codes: int = 64, split: str = "original", **model: Any
) -> Path:
    """`Emu3ForConditionalGeneration` with its `Emu3Processor`; `model` overrides fields of the text configuration.

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
    config = Emu3Config(
        text_config=settings,
        vq_config={**VISION, "codebook_size": num_codes},
        vocabulary_map=text_words(vocabulary, text),
    )
    with without_bars():
        _loud(Emu3ForConditionalGeneration(config)).save_pretrained(folder)
    write_processor(folder, text, vocabulary, (16 * 16, 64 * 64))
    return folder


def write_original(folder: str | Path, form: str = "emu3", *, seed: int = 0, num_codes: int = 64, **model: Any) -> Path:
    """A language model in the format of baaivision/Emu3 or baaivision/Emu3.5, with its tokenizer files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ranks = small_ranks()
    vocabulary = small_vocabulary(len(ranks), num_codes, form)
    torch.manual_seed(seed)
    newer: dict[str, Any] = {"qk_norm": True, "head_dim": 16} if form == "emu3.5" else {}
    special = {f"{name}_token_id": vocabulary.control(name) for name in ("pad", "bos", "eos")}
    config = EmuConfig(**{**MODEL, **newer, **model, **special, "vocab_size": vocabulary.size})
    table = original_config(config, vocabulary)
    (folder / "config.json").write_text(json.dumps(table, indent=2))
    state = _loud(EmuForCausalLM(config)).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})
    write_ranks(ranks, folder / RANKS_FILE)
    (folder / "emu3_vision_tokens.txt").write_text("\n".join(vision_words(num_codes)) + "\n")
    return folder


def write_original_vision(folder: str | Path, *, seed: int = 1, num_codes: int = 64) -> Path:
    """A vision tokenizer in the format of baaivision/Emu3's `Emu3-VisionTokenizer`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    table = {**VISION, "codebook_size": num_codes, "model_type": "emu3_vqgan"}
    VisionTokenizer(config_from(table)).save_pretrained(folder, naming="emu3")
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 16 * 16, "max_pixels": 64 * 64}))
    return folder


def write_newer_vision(folder: str | Path, *, seed: int = 1, num_codes: int = 64) -> Path:
    """A vision tokenizer in the format of baaivision/Emu3.5, in safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    inner = {"ch": 32, "out_ch": 3, "ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [4]}
    inner |= {"in_channels": 3, "resolution": 64, "z_channels": 8, "double_z": False}
    table = {"ddconfig": inner, "n_embed": num_codes, "embed_dim": 8, "beta": 0.25}
    tokenizer = VisionTokenizer(ibq_config(table)).eval()
    (folder / "config.yaml").write_text(json.dumps(table))
    save_file(ibq_state(tokenizer), folder / WEIGHTS, {"format": "pt"})
    return folder


def _loud(model: Any) -> Any:
    """Larger weights than at the start of training, so that a random model's choices are far apart."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vqmodel" not in name and parameter.ndim > 1:
                parameter.mul_(8)
    return model


def write(form: str, folder: str | Path, **model: Any) -> Path:
    """A stand-in of a format, "transformers", "emu3" or "emu3.5", with its vision tokenizer in or under its folder."""
    if form == "transformers":
        return write_transformers(folder, **model)
    write_vision = write_original_vision if form == "emu3" else write_newer_vision
    write_vision(Path(folder) / "vision_tokenizer")
    return write_original(folder, form, **model)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("transformers", "emu3", "emu3.5"):
        sys.exit("usage: python -m emu.families.emu3.tiny transformers|emu3|emu3.5 FOLDER")
    write(sys.argv[1], sys.argv[2])
