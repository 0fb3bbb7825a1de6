"""Pixels to codes and back with the weights of a folder: a `VisionTokenizer` without training.

    coder = VisionCoder.from_pretrained("digits")
    codes = coder.encode(pixels)        # (B, 3, H, W) -> (B, h, w);  (B, T, 3, H, W) -> (B, t, h, w)

It is separate because of import time: transformers' `PreTrainedModel` takes longer to import than everything here together, which every
encoding process would pay.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emu_tokenizers.folders import VISION_FOLDER, find_part
from emu_tokenizers.quantizers import make_quantizer
from emu_tokenizers.vision.config import VisionTokenizerConfig
from emu_tokenizers.vision.decoder import Decoder
from emu_tokenizers.vision.encoder import Encoder
from emu_tokenizers.vision.fingerprint import fingerprint
from emu_tokenizers.vision.inputs import check_codes, check_frames, check_pixels
from emu_tokenizers.vision.naming import THEIR_CODEBOOKS, config_from, weights_from
from emu_tokenizers.vision.temporal import CausalConv3d, TemporalState
from emu_tokenizers.vision.tiling import decode_tiled
from emu_tokenizers.vision.weight_files import check_fit, read_settings, read_weights
from emu_tokenizers.weight_checks import check_finite

if TYPE_CHECKING:
    from typing_extensions import Self


class VisionCoder(nn.Module):
    """Encoder, quantizer and decoder of one configuration.

    Its weights are meant to be loaded: a new object has PyTorch's initial weights, not those for training.

    Attributes:
        max_pixels_per_pass: pixels that the 2D encoder and decoder process at once without gradients; further frames
            are processed in groups, so that memory does not grow with the batch or the length of a clip.
        max_pixels_per_picture: a frame of more pixels is decoded in tiles, in the memory of `max_pixels_per_pass`: the same
            picture up to rounding, in a multiple of the time.
    """

    config: VisionTokenizerConfig

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.make_parts(config)

    def make_parts(self, config: VisionTokenizerConfig) -> None:
        """Make the modules of a configuration."""
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = make_quantizer(
            config.quantizer, config.embed_dim, config.codebook_size, config.quantizer_options
        )
        kernel = (3, 1, 1) if config.temporal_factor > 1 else (1, 1, 1)
        self.quant_conv = CausalConv3d(config.latent_channels, config.embed_dim, kernel)
        self.post_quant_conv = CausalConv3d(config.embed_dim, config.latent_channels, kernel)
        self.max_pixels_per_pass = 1 << 20
        self.max_pixels_per_picture = 1 << 22

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.encoder.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.encoder.conv_in.weight.dtype

    @property
    def spatial_factor(self) -> int:
        """Pixels per code along each side."""
        return self.config.spatial_factor

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame."""
        return self.config.temporal_factor

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each codebook."""
        return self.quantizer.codebook_sizes

    @property
    def fingerprint(self) -> str:
        """Identifies this tokenizer's codes: a hash of weights, architecture and clip rule, 16 hexadecimal digits."""
        weights = {name: tensor for name, tensor in self.state_dict().items() if not self._is_statistic(name)}
        return fingerprint(self.config, weights)

    def _is_statistic(self, name: str) -> bool:
        """Whether training alone reads this entry of the state dict."""
        part, last = name.split(".", 1)[0], name.rsplit(".", 1)[-1]
        return last in (self.quantizer.statistics if part == "quantizer" else ("num_batches_tracked",))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels as codes.

        Args:
            pixels: images (B, 3, H, W) or clips (B, T, 3, H, W), floating point in [-1, 1], sides a multiple of the
                spatial factor, any T >= 1 (the tail of a clip repeats its last frame).

        Returns:
            int64 codes (B, h, w) or (B, t, h, w) with t = ceil(T / temporal factor); several codebooks add a last axis.

        Raises:
            TypeError: pixels are not a floating point tensor.
            ValueError: wrong shape, channels or size, or pixels that are not finite.
        """
        check_pixels(pixels, self.config)
        codes = self.quantizer.encode(self.latents(pixels))
        return codes if pixels.ndim == 5 else codes[:, 0]

    @torch.no_grad()
    def decode(self, codes: Tensor, frames: int | None = None) -> Tensor:
        """Decode codes to pixels: the decoder's raw output, not clamped.

        Args:
            codes: int64 (B, h, w) for images or (B, t, h, w) for clips, a last axis for several codebooks.
            frames: length of the clip; None decodes t * temporal factor frames. Only for clips.

        Raises:
            TypeError: codes are not integers.
            ValueError: wrong shape, codes outside the codebook, or a number of frames that does not match the codes.
        """
        is_clip = check_codes(codes, self.codebook_sizes)
        frames = check_frames(codes, frames, self.temporal_factor, is_clip)
        vectors = self.quantizer.decode(codes.long() if is_clip else codes.long()[:, None])
        decoded = self._decode_vectors(vectors.to(self.dtype), torch.arange(frames, device=codes.device))
        return decoded if is_clip else decoded[:, 0]

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Codes of a long clip that arrives in chunks (B, T_i, 3, H, W): the codes of one call, piece by piece.

        Frames wait until a whole latent frame is there; the last one is completed by repeating the last frame.
        """
        state: TemporalState = {}
        waiting: Tensor | None = None
        for chunk in chunks:
            check_pixels(chunk, self.config, clip=True)
            maps = self._latent_maps(chunk)
            waiting = maps if waiting is None else torch.cat((waiting, maps), dim=2)
            whole = waiting.shape[2] - waiting.shape[2] % self.temporal_factor
            if whole:
                yield self.quantizer.encode(self._join_frames(waiting[:, :, :whole], state))
            waiting = waiting[:, :, whole:]
        if waiting is not None and waiting.shape[2]:
            yield self.quantizer.encode(self._join_frames(waiting, state))

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pixels of a long clip whose codes arrive in chunks (B, t_i, h, w): the pixels of one call, piece by piece."""
        state: TemporalState = {}
        for codes in chunks:
            if not check_codes(codes, self.codebook_sizes):
                raise ValueError(f"codes have shape {tuple(codes.shape)}; decode_stream expects clips (B, t, h, w)")
            vectors = self.quantizer.decode(codes.long()).to(self.dtype)
            frames = torch.arange(codes.shape[1] * self.temporal_factor, device=codes.device)
            yield self._decode_vectors(vectors, frames, state)

    def latents(self, pixels: Tensor) -> Tensor:
        """What the quantizer sees: images or clips -> (B, D, t, h, w), with t = 1 for images."""
        clip = pixels if pixels.ndim == 5 else pixels[:, None]
        return self._join_frames(self._latent_maps(clip))

    def _latent_maps(self, clip: Tensor) -> Tensor:
        """2D latent maps of every frame: (B, T, 3, H, W) -> (B, C, T, h, w)."""
        frames = clip.flatten(0, 1).to(self.dtype)
        parts = frames.split(self._frames_per_pass(frames.shape[-2] * frames.shape[-1]))
        maps = torch.cat([self.encoder.spatial(part) for part in parts])
        return maps.unflatten(0, clip.shape[:2]).transpose(1, 2)

    def _join_frames(self, maps: Tensor, state: TemporalState | None = None) -> Tensor:
        """Latent maps (B, C, T, h, w) of any T >= 1 -> latents (B, D, t, h, w); the last map is repeated to fill up."""
        factor = self.temporal_factor
        missing = -maps.shape[2] % factor
        if missing:
            maps = torch.cat((maps, maps[:, :, -1:].expand(-1, -1, missing, -1, -1)), dim=2)
        if self._independent:
            groups = maps.unflatten(2, (-1, factor)).transpose(1, 2).flatten(0, 1)  # (B t, C, factor, h, w)
            latents = self.quant_conv(self.encoder.temporal(groups))[:, :, 0]
            return latents.unflatten(0, (maps.shape[0], -1)).transpose(1, 2)
        return self.quant_conv(self.encoder.temporal(maps, state), state)

    def _decode_vectors(self, vectors: Tensor, frames: Tensor, state: TemporalState | None = None) -> Tensor:
        """Code vectors (B, D, t, h, w) -> pixels (B, n, 3, H, W) of the n frames of these indices."""
        batch = vectors.shape[0]
        if self._independent:  # a batch of clips of one latent frame each, none of which has a past
            vectors, state = vectors.transpose(1, 2).flatten(0, 1)[:, :, None], None  # (B t, D, 1, h, w)
        latents, code_map = self.decoder.temporal(self.post_quant_conv(vectors, state), vectors, state)
        if self._independent:
            latents, code_map = (
                x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)  # (B, C, T, h, w)
                for x in (latents, code_map)
            )
        # Frames are chosen after the cheap temporal layers, which need their past, and before the costly 2D decoder.
        latents, code_map = (x.index_select(2, frames).transpose(1, 2).flatten(0, 1) for x in (latents, code_map))
        pixels = latents.shape[-2] * latents.shape[-1] * self.spatial_factor**2
        parts = zip(*(maps.split(self._frames_per_pass(pixels)) for maps in (latents, code_map)), strict=True)
        if pixels > self.max_pixels_per_picture and not torch.is_grad_enabled():
            decoded = [decode_tiled(self.decoder, part, cells, self.max_pixels_per_pass) for part, cells in parts]
        else:
            decoded = [self.decoder.spatial(part, cells) for part, cells in parts]
        return torch.cat(decoded).unflatten(0, (batch, -1))

    @property
    def _independent(self) -> bool:
        return self.config.chunk == "independent"

    def _frames_per_pass(self, pixels_per_frame: int) -> int:
        if torch.is_grad_enabled():  # the maps of all frames are kept for the backward pass in any case
            return 1 << 30
        return max(1, self.max_pixels_per_pass // pixels_per_frame)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        config: VisionTokenizerConfig | None = None,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> Self:
        """Load a tokenizer in evaluation mode from a folder or a repository on the Hub.

        Reads what `save_pretrained` wrote in any naming, including folders of transformers' `Emu3VQVAE` and of the
        Emu3 repository. No weight may be missing.

        Args:
            source: folder or repository, also the folder of a model that holds the tokenizer.
            config: replaces the stored configuration (for example, with another clip rule), or a missing one:
                `VisionTokenizerConfig.preset("emu3.5")` for safetensors of Emu3.5's tokenizer.
            dtype: of the weights; None keeps that of the file.
            hub: where to look: revision, subfolder, cache_dir, token, local_files_only.

        Raises:
            FileNotFoundError: no such folder or repository, or a file is missing in it.
            ValueError: not a vision tokenizer, a damaged file, weights that do not fit the configuration, or that hold NaN or infinity.
        """
        source = find_part(source, VISION_FOLDER)
        if config is None:
            config = config_from(read_settings(source, **hub))
        weights = read_weights(source, **hub)
        own = any(name.startswith("quantizer.") and name not in THEIR_CODEBOOKS for name in weights)
        tokenizer = cls(config)
        tokenizer.load_weights(weights if own else weights_from(weights, config.quantizer), str(source))
        check_finite(tokenizer, source)
        return tokenizer.eval() if dtype is None else nn.Module.to(tokenizer, dtype).eval()

    def load_weights(self, weights: Mapping[str, Tensor], source: str = "the given weights") -> None:
        """Fill in weights by our names; a quantizer without the statistics of its training starts those anew.

        Raises:
            ValueError: weights are missing, unknown or of another shape.
        """
        own = self.state_dict()
        optional = {name for name in own if self._is_statistic(name)}
        check_fit(weights, own, optional, source)
        dtype = next(t.dtype for t in weights.values() if t.is_floating_point())
        nn.Module.to(self, dtype).load_state_dict(dict(weights), strict=False)
        if any(name.startswith("quantizer.") for name in optional - set(weights)):
            self.quantizer.reset_statistics()
