"""A vision tokenizer whose codes are patches of pixels, fitted in seconds by clustering instead of gradients.

Rendered worlds are made of few distinct patches. Their k-means centres are a vector quantizer of patches, and a `VisionTokenizer` can hold
it exactly: its convolutions reduce to their centre taps, its residual branches to nothing, and its norms to constants, so that a code says
what is in its cell and nothing about the neighbours. Such codes are the easiest that a transformer can get; a tokenizer trained by
gradients gives one cell different codes beside different neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from emu.layouts import Emu3Layout
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.vocabulary import HOLE
from emu.worlds import FillWorld, ShapesWorld, World
from emu.worlds.scene_documents import QUESTION
from emu_tokenizers import TextTokenizer, VisionTokenizer, VisionTokenizerConfig
from emu_tokenizers.pixels.transforms import from_bytes
from emu_tokenizers.quantizers.vq import MultiQuantizer, VectorQuantizer
from emu_tokenizers.vision.layers import FrameAttention, ResidualBlock, SpatialNorm

MAX_COMPONENTS = 96
CAPTIONS_OF_A_WORLD = 1000
CARRIER = 1000.0
"""Constant that two channels carry through the encoder's norm, so large beside the signal that the norm divides by a constant."""


def fit_patches(
    pictures: Tensor,
    codebook_size: int,
    *,
    patch: int = 8,
    embed_dim: int | None = None,
    per_channel: bool = False,
    rounds: int = 10,
    seed: int = 0,
) -> VisionTokenizer:
    """Cluster the patches of pictures and build a tokenizer of them.

    Args:
        pictures: (n, 3, H, W) in [-1, 1], sides a multiple of `patch`.
        codebook_size: number of codes. Where there are fewer distinct patches than codes, each gets its own and the rest stay unused.
        patch: pixels along a code; the tokenizer's spatial factor.
        embed_dim: width of a code vector, the principal components that are kept of a patch; by default as many as keep a millionth from
            being lost, at most 96.
        per_channel: three codes for each patch, one for each colour channel, each with a codebook of `codebook_size`, instead of one: a
            shape in a colour that it never had is then put together from codes that are known. `embed_dim` counts for each channel.
        rounds: of k-means.
        seed: chooses its starting points.

    Returns:
        A tokenizer of temporal factor 1: frames of clips are encoded one by one.

    Raises:
        ValueError: pictures of another shape, or an embedding wider than a patch.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] % patch or pictures.shape[3] % patch:
        raise ValueError(
            f"pictures are {tuple(pictures.shape)}; expected (n, 3, H, W) with sides that are multiples of {patch}"
        )
    if embed_dim is not None and not 1 <= embed_dim <= 3 * patch * patch:
        raise ValueError(f"embed_dim is {embed_dim}; a patch of {patch} pixels has 1 to {3 * patch * patch} components")
    flat = nn.functional.pixel_unshuffle(
        pictures.float(), patch
    )  # (n, 3 p p, h, w), the order of the tokenizer's own patches
    rows = flat.movedim(1, -1).flatten(0, 2)  # (m, 3 p p)
    parts = rows.split(patch * patch, dim=1) if per_channel else (rows,)
    books = [_cluster(part, codebook_size, rounds, seed) for part in parts]
    middles = [book.mean(dim=0) for book in books]
    bases = [_components(book - middle, embed_dim) for book, middle in zip(books, middles, strict=True)]
    width = max(map(len, bases))
    bases = [nn.functional.pad(basis, (0, 0, 0, width - len(basis))) for basis in bases]
    codes = []
    for book, middle, basis in zip(books, middles, bases, strict=True):
        unused = torch.full((codebook_size - len(book), width), CARRIER)  # too far away to be anybody's nearest
        codes.append(torch.cat([(book - middle) @ basis.T, unused]))
    return _assemble(torch.block_diag(*bases), torch.cat(middles), codes, patch)


def _cluster(rows: Tensor, size: int, rounds: int, seed: int) -> Tensor:
    """At most `size` rows that stand for the rows (m, d): all that are distinct, or the centres of clusters."""
    kinds, counts = rows.unique(dim=0, return_counts=True)
    return kinds if len(kinds) <= size else _k_means(kinds, counts, size, rounds, seed)


def _components(rows: Tensor, number: int | None) -> Tensor:
    """Principal axes (D, d) of rows (m, d), the strongest first; zeros where there are fewer than asked for."""
    _, strength, axes = torch.linalg.svd(rows, full_matrices=False)
    if number is None:
        lost = 1 - strength.double().square().cumsum(0) / strength.double().square().sum()
        number = min(MAX_COMPONENTS, int((lost > 1e-6).sum()) + 1)
    missing = axes.new_zeros(max(0, number - len(axes)), axes.shape[1])
    return torch.cat([axes[:number], missing])


def _k_means(kinds: Tensor, counts: Tensor, size: int, rounds: int, seed: int) -> Tensor:
    """Centres (size, d) of distinct rows (m, d) that occur `counts` times."""
    generator = torch.Generator().manual_seed(seed)
    centres = kinds[torch.randperm(len(kinds), generator=generator)[:size]]
    weights = counts.float()[:, None]
    for _ in range(rounds):
        nearest = torch.cdist(kinds, centres).argmin(dim=1)
        total = torch.zeros(size, kinds.shape[1]).index_add_(0, nearest, kinds * weights)
        mass = torch.zeros(size, 1).index_add_(0, nearest, weights)
        # A centre that lost all its patches stays where it is; it may win some back.
        centres = torch.where(mass > 0, total / mass.clamp(min=1), centres)
    return centres


@torch.no_grad()
def _assemble(basis: Tensor, middle: Tensor, books: Sequence[Tensor], patch: int) -> VisionTokenizer:
    """A tokenizer that encodes a patch x as the nearest code to `basis @ (x - middle)` and decodes code z as `middle + z @ basis`.

    With several books (K, D / n), each holds the codes of its own share of the D components.
    """
    embed_dim = len(basis)
    width = 2 * embed_dim + 2  # each component with both signs, since silu(v) - silu(-v) = v; and the two carriers
    config = VisionTokenizerConfig(
        spatial_factor=patch,
        temporal_factor=1,
        codebook_size=len(books[0]),
        embed_dim=embed_dim,
        latent_channels=embed_dim,
        base_channels=width,
        channel_multiplier=(1,),
        num_res_blocks=1,
        attn_resolutions=(),
        norm_groups=1,
        spatial_norm=True,
        quantizer="vq" if len(books) == 1 else "multi",
        quantizer_options={} if len(books) == 1 else {"num_codebooks": len(books)},
    )
    tokenizer = VisionTokenizer(config)
    for module in tokenizer.modules():
        if isinstance(module, ResidualBlock):
            _zero(module.conv2)
        elif isinstance(module, FrameAttention):
            _zero(module.out_proj)
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    # Normalising divides by the deviation, which the two carriers of +-CARRIER alone decide: sqrt(2 / width) CARRIER in every frame.
    signs = torch.cat([torch.eye(embed_dim), -torch.eye(embed_dim), torch.zeros(2, embed_dim)])  # (width, D)
    offset = signs @ basis @ -middle
    offset[-2:] = torch.tensor([CARRIER, -CARRIER])
    _set(encoder.conv_in, signs @ basis, offset)
    encoder.norm_out.weight.fill_(
        CARRIER * (2 / width) ** 0.5
    )  # the deviation inside the norm, whatever the frame shows
    encoder.norm_out.bias.zero_()
    _set(encoder.conv_out, signs.T, torch.zeros(embed_dim))
    for causal in (tokenizer.quant_conv, tokenizer.post_quant_conv):
        _set(causal.conv, torch.eye(embed_dim), torch.zeros(embed_dim))
    norm = decoder.norm_out
    assert isinstance(norm, SpatialNorm)
    for layer in (decoder.conv_in, norm.conv_y):
        _zero(layer)
    _set(norm.conv_b, signs, torch.zeros(width))
    _set(decoder.conv_out, basis.T @ signs.T, middle)
    quantizer = tokenizer.quantizer
    assert isinstance(quantizer, VectorQuantizer | MultiQuantizer)
    for book, codes in zip(
        [quantizer] if isinstance(quantizer, VectorQuantizer) else quantizer.each(), books, strict=True
    ):
        book.load_codes(codes)
    return tokenizer.eval()


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


def _set(layer: nn.Conv2d | nn.Conv3d, weight: Tensor, bias: Tensor) -> None:
    """Make a convolution the linear map `weight` (out, in) at its centre tap."""
    _zero(layer)
    taps = layer.weight.flatten(2)  # a view: (out, in, taps), the middle one at the centre
    taps[:, :, taps.shape[2] // 2] = weight
    assert layer.bias is not None
    layer.bias.copy_(bias)


def fit_tokenizer(
    worlds: Sequence[World],
    size: int = 32,
    *,
    codebook_size: int = 64,
    per_channel: bool = False,
    text_size: int = 416,
    layout: str = Emu3Layout.name,
) -> MultimodalTokenizer:
    """Both tokenizers of some worlds from nothing: words from all captions and headers, codes from the patches of rendered pictures.

    Args:
        worlds: of pictures and of clips, that of one or of two objects among them.
        size: pixels along a picture.
        codebook_size: number of codes; 64 keep all patches of 32x32 pictures apart, 256 those of 64x64, 1024 those of 128x128.
        per_channel: see `fit_patches`.
        text_size: number of text ids, 256 of which are bytes.
        layout: name of the layout.
    """
    pictures = [world.render(world.draw(0, 2000).rows, size) for world in worlds if isinstance(world, ShapesWorld)]
    shown = from_bytes(torch.from_numpy(np.concatenate(pictures)).movedim(-1, 1))
    vision = fit_patches(shown, codebook_size, per_channel=per_channel)
    corpus = ["4*4*4 4f 4fps 1s", "1 boxes", "2 boxes", QUESTION] * CAPTIONS_OF_A_WORLD
    for world in worlds:
        captions = [world.captions.text(number) for number in range(len(world.captions))]
        corpus += [captions[i % len(captions)] for i in range(max(CAPTIONS_OF_A_WORLD, len(captions)))]
    hides = any(isinstance(world, FillWorld) for world in worlds)
    return MultimodalTokenizer(
        TextTokenizer.train(corpus, text_size),
        vision,
        layout,
        ("image", "video", "boxes"),
        extra_controls=(HOLE,) if hides else (),
    )
