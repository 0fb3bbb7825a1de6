"""Emu3.5 as its makers released it: Emu3's files with norms of queries and keys, more controls, and the IBQ vision tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import torch

from emu.families.base import Weights
from emu.families.emu3 import Emu3Family, has_query_norm
from emu.families.emu3.config import config_from, config_to
from emu.families.emu3.tiny import write_language_model
from emu.families.emu35.templates import NAMED, emu35
from emu.families.emu35.vision import ibq_config, ibq_settings, read_ibq, read_settings, write_ibq
from emu.layouts import Emu35Layout
from emu.model_config import EmuConfig
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.templates import Templates
from emu.vocabulary import Vocabulary
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.folders import VISION_FOLDER
from emu_tokenizers.pixels.resize import Resize

EXTRA_CONTROLS = {"tms": 202, "bss": 100, "ess": 101, "bog": 60, "eog": 61, "boc": 50, "eoc": 51}
"""Control -> n of its word `<|extra_n|>` (`configs/config.py` of baaivision/Emu3.5): time stamp, begin and end of the answer, of the
plan for a whole document and of the plan for one image."""

RELEASED_SIZE = 282926
"""Size of the released vocabulary, whose table is known without tokenizer files."""

AREA = 1024 * 1024
"""Area of pictures in pixels where config.json does not say."""


class Emu35Family(Emu3Family):
    """The files of baaivision/Emu3.5, Emu3.5 and Emu3.5-Image."""

    name = "emu3.5"
    title = "the original format of Emu3.5"
    layout = Emu35Layout.name
    modalities = ("image",)
    vision_types = ()
    templates = NAMED
    vision_repository = "BAAI/Emu3.5-VisionTokenizer"
    also_called = ("emu3",)
    extra_controls = EXTRA_CONTROLS
    released_size = RELEASED_SIZE

    def detect(self, config: Mapping[str, Any], tensor_names: Callable[[], Set[str]]) -> bool:
        """Emu3's `model_type`, and norms of queries."""
        return config.get("model_type") in self.model_types and has_query_norm(config, tensor_names)

    def config_from(self, config: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> EmuConfig:
        """Emu3's fields, heads of width 128 unless it says otherwise, and QK-norm."""
        return config_from(config, vocabulary, head_dim=config.get("head_dim") or 128, qk_norm=True)

    def config_to(self, config: EmuConfig, tokenizer: MultimodalTokenizer | None) -> dict[str, Any]:
        """Emu3's config.json with the width of heads and the area of pictures."""
        if not config.qk_norm:
            raise ValueError(f"the model has no QK-norm, which {self.title} always has; convert it to another family")
        if tokenizer is None:
            return with_head_dim(config, None)
        area = None if tokenizer.resize is None else tokenizer.resize.area
        return with_head_dim(config, tokenizer.vocabulary) | {"image_area": area or AREA}

    def holds(self, config: EmuConfig) -> bool:
        """A model with QK-norm."""
        return config.qk_norm

    def is_vision(self, folder: Path) -> bool:
        """A folder with the settings of an IBQ tokenizer, which have no `model_type`."""
        return read_settings(folder) is not None

    def vision(self, folder: Path, allow_pickle: Iterable[str]) -> VisionTokenizer:
        """See `Family`."""
        settings = read_settings(folder)
        assert settings is not None
        return read_ibq(folder, settings, allow_pickle)

    def resize(self, folder: Path, place: Path, factor: int, config: Mapping[str, Any]) -> Resize | None:
        """One area for all pictures."""
        return Resize(factor, area=int(config.get("image_area", AREA)))

    def default_templates(self, name: str) -> Templates:
        """Those of text to image."""
        return emu35("t2i")

    def defaults(self, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of `configs/example_config_t2i.py` of baaivision/Emu3.5; Emu3.5-Image is guided more strongly."""
        image = "image" in name.lower()
        return {"size": [55 * 16, 73 * 16], "guidance_scale": 5.0 if image else 2.0, "top_k": 5120}

    def vision_config(self, vision: VisionTokenizer) -> dict[str, Any]:
        """See `ibq_settings`."""
        return ibq_settings(vision.config)

    def write_vision(self, folder: Path, vision: VisionTokenizer, resize: Resize) -> None:
        """Write the folder of the IBQ tokenizer; its pictures have no bounds."""
        write_ibq(folder, vision)

    def write_tiny(self, folder: Path, weights: Weights, *, alone: bool = False, **model: Any) -> None:
        """Emu3's tiny model with QK-norm and more controls."""
        model = {"qk_norm": True, "head_dim": 16, **model}
        write_language_model(folder, weights, with_head_dim, extra_controls=EXTRA_CONTROLS, **model)
        if not alone:
            write_tiny_vision(folder / VISION_FOLDER)


def with_head_dim(config: EmuConfig, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Emu3's config.json and the width of heads, which Emu3.5 says apart."""
    return config_to(config, vocabulary) | {"head_dim": config.head_dim}


def write_tiny_vision(folder: str | Path, *, seed: int = 1, num_codes: int = 64) -> Path:
    """A vision tokenizer in the files of baaivision/Emu3.5, in safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    inner = {"ch": 32, "out_ch": 3, "ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [4]}
    inner |= {"in_channels": 3, "resolution": 64, "z_channels": 8, "double_z": False}
    table = {"ddconfig": inner, "n_embed": num_codes, "embed_dim": 8, "beta": 0.25}
    write_ibq(folder, VisionTokenizer(ibq_config(table)).eval())
    return folder
