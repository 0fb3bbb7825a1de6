"""The vision tokenizer: pixels to grids of discrete codes and back, for images and clips.

    codes = tokenizer.encode(pixels)    # (B, 3, H, W) -> (B, h, w);  (B, T, 3, H, W) -> (B, t, h, w)
    pixels = tokenizer.decode(codes)    # and back; frames=T trims a clip

The architecture is Emu3's (arXiv 2409.18869, section 2.2). An image costs one pass of the 2D encoder and one of the 2D
decoder: the reference runs four identical frames, and only the few latent channels differ from one frame to the next.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from emu_tokenizers.bars import without_bars
from emu_tokenizers.vision.coder import VisionCoder
from emu_tokenizers.vision.config import VisionTokenizerConfig
from emu_tokenizers.vision.initialization import init_weights
from emu_tokenizers.vision.inputs import check_pixels
from emu_tokenizers.vision.naming import config_to, weights_to
from emu_tokenizers.vision.weight_files import write_folder


@dataclass
class VisionTokenizerOutput:
    """What `VisionTokenizer.forward` returns.

    Attributes:
        reconstruction: pixels of the input's shape.
        ids: codes, int64 (B, h, w) or (B, t, h, w), a last axis for several codebooks; None without quantization.
        losses: named scalar losses of the quantizer, unweighted.
        latents: what was quantized, (B, D, t, h, w).
        vectors: what was decoded, the code vectors of the ids, (B, D, t, h, w).
    """

    reconstruction: Tensor
    ids: Tensor | None
    losses: dict[str, Tensor] = field(default_factory=dict)
    latents: Tensor | None = None
    vectors: Tensor | None = None


class VisionTokenizer(VisionCoder, PreTrainedModel):  # type: ignore[misc]  # opens its own folders, as transformers does not
    """Discrete autoencoder of images and clips: a `VisionCoder` that is initialised for training, and can be trained."""

    config_class = VisionTokenizerConfig
    config: VisionTokenizerConfig
    base_model_prefix = ""
    main_input_name = "pixels"
    input_modalities = ["image", "video"]
    _no_split_modules = ["Level", "MiddleBlock"]

    def __init__(self, config: VisionTokenizerConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.make_parts(config)
        self.post_init()

    def forward(
        self, pixels: Tensor, quantize: bool = True, frame_indices: Tensor | None = None
    ) -> VisionTokenizerOutput:
        """Reconstruct pixels through the codes, with gradients.

        Args:
            pixels: images (B, 3, H, W) or clips (B, T, 3, H, W) in [-1, 1].
            quantize: False passes the latents on unquantized, for the first steps of training.
            frame_indices: int64 (n,), the frames of a clip to reconstruct; None for all. The 2D decoder is most of the
                work, so a training step on some of the frames costs little more than half.

        Returns:
            The output, its reconstruction of shape (B, 3, H, W) or (B, T or n, 3, H, W).
        """
        check_pixels(pixels, self.config)
        latents = self.latents(pixels)
        ids, losses, vectors = None, {}, latents
        if quantize:
            quantized = self.quantizer(latents)
            ids, losses, vectors = quantized.ids, quantized.losses, quantized.vectors
        clip = pixels.ndim == 5
        if frame_indices is None:
            frame_indices = torch.arange(pixels.shape[1] if clip else 1, device=pixels.device)
        reconstruction = self._decode_vectors(vectors, frame_indices)
        if not clip:
            reconstruction = reconstruction[:, 0]
            ids = None if ids is None else ids[:, 0]
        return VisionTokenizerOutput(reconstruction, ids, losses, latents, vectors)

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike, naming: str = "emu", **options: Any
    ) -> None:
        """Write the tokenizer as a folder of config.json and model.safetensors.

        Args:
            save_directory: the folder, created if it does not exist.
            naming: "emu" for ours, "transformers" for what `Emu3VQVAE.from_pretrained` reads, "emu3" for the names of
                the Emu3 repository. The last two support only Emu3's architecture, and no training state.
            options: of `PreTrainedModel.save_pretrained` (max_shard_size, push_to_hub), with our naming.

        Raises:
            ValueError: the naming is unknown, or does not support this architecture.
        """
        if options and naming == "emu":
            with without_bars():
                PreTrainedModel.save_pretrained(self, save_directory, **options)
            return
        if naming == "emu":
            settings = {**self.config.to_dict(), "architectures": [type(self).__name__]}
            weights = self.state_dict()
        else:
            settings = config_to(self.config, naming)
            weights = weights_to(self.state_dict(), naming)
        settings["dtype"] = str(self.dtype).removeprefix("torch.")
        write_folder(save_directory, settings, weights)
