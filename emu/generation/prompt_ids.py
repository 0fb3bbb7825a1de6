"""Prompts: checked, given their negative counterpart, and joined with codes that are known already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emu.generation.limits import warn_caller
from emu.layouts import BlockTemplate, Cursor, Layout
from emu.modalities import Grid

Prompts = Sequence[Tensor | Sequence[int]]


def check_prompts(prompts: Prompts, vocab_size: int, name: str = "prompt_ids") -> list[Tensor]:
    """Prompts as 1-D int64 tensors on the CPU.

    Raises:
        TypeError: not a list of 1-D integer tensors.
        ValueError: no prompts, an empty one, or an id outside the vocabulary.
    """
    if isinstance(prompts, Tensor) and prompts.ndim == 1:
        raise TypeError(f"{name} is one tensor; pass a list with one 1-D tensor of ids per prompt")
    rows = [torch.as_tensor(prompt) for prompt in prompts]
    if not rows:
        raise ValueError(f"{name} is empty; pass at least one prompt")
    for number, row in enumerate(rows):
        if row.ndim != 1 or row.is_floating_point() or row.dtype == torch.bool:
            raise TypeError(f"{name}[{number}] is {row.dtype} {tuple(row.shape)}; expected a 1-D tensor of ids")
        if not len(row):
            raise ValueError(f"{name}[{number}] is empty; a prompt has at least the begin token")
        low, high = (int(bound) for bound in row.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"{name}[{number}] holds id {low if low < 0 else high}; the model has {vocab_size} ids")
    return [row.to(device="cpu", dtype=torch.int64) for row in rows]


def check_headers(
    prompts: Sequence[Tensor], layout: Layout, modality: str, grid: Grid, name: str = "prompt_ids"
) -> None:
    """Every prompt must end in the header of a block, and of this block where the layout can read headers.

    Raises:
        ValueError: one does not.
    """
    for number, prompt in enumerate(prompts):
        header = layout.own_header(prompt)
        if header is None:
            raise ValueError(
                f"{name}[{number}] does not end in a header; append that of the block, layout.header({modality!r}, {grid})"
            )
        if not layout.reads_headers:
            continue
        found, size, _ = layout.parse_header(header.tolist())
        if (found, tuple(size)) != (modality, tuple(grid)):
            raise ValueError(
                f"{name}[{number}] announces {found} {tuple(size)}, but {modality} {tuple(grid)} was asked for; make them agree"
            )


def negative_rows(prompts: Sequence[Tensor], given: Prompts | None, layout: Layout, vocab_size: int) -> list[Tensor]:
    """The unconditional counterpart of each prompt: what is given, or BOS and the prompt's own header.

    Raises:
        TypeError, ValueError: see `check_prompts`; another number than prompts.
    """
    if given is None:
        begin = torch.tensor([layout.vocabulary.controls["bos"]])
        headers = [layout.own_header(prompt) for prompt in prompts]
        return [torch.cat([begin, header]) for header in headers if header is not None]
    rows = check_prompts(given, vocab_size, "negative_ids")
    if len(rows) != len(prompts):
        raise ValueError(f"{len(rows)} negative_ids for {len(prompts)} prompts; give one per prompt, or None")
    if any(layout.own_header(row) is None for row in rows):
        warn_caller(
            "negative_ids without the header of the block at their end: transformers' documented call has none, Emu3's own code does"
        )
    return rows


def known_codes(prefix: Tensor | None, template: BlockTemplate, grid: Grid, prompts: int) -> Tensor:
    """Codes of the first steps of the grid's slowest axis, as (prompts, number of codes).

    Args:
        prefix: (prompts, k, ...) or (k, ...) for all of them, where (k, ...) is the shape of the codes with a shorter first axis.

    Raises:
        ValueError: another shape, or codes outside their range.
    """
    if prefix is None:
        return torch.empty(prompts, 0, dtype=torch.int64)
    prefix = torch.as_tensor(prefix).to(device="cpu", dtype=torch.int64)
    if prefix.ndim == len(template.shape):
        prefix = prefix.expand(prompts, *prefix.shape)
    expected = (prompts, "k", *template.shape[1:])
    fits = prefix.ndim == len(template.shape) + 1 and len(prefix) == prompts and prefix.shape[2:] == template.shape[1:]
    if not fits or prefix.shape[1] > template.shape[0]:
        raise ValueError(
            f"prefix_codes has shape {tuple(prefix.shape)}; expected {expected} with k up to {template.shape[0]}, for the grid {grid}"
        )
    known = prefix.flatten(1)
    count = template.count[template.free][: known.shape[1]]
    if known.numel() and (bool((known < 0).any()) or bool((known >= count).any())):
        raise ValueError(
            f"prefix_codes holds codes from {int(known.min())} to {int(known.max())}; the codebook has {int(count.max())}"
        )
    return known


def begun_document(
    prompt_ids: Tensor | Sequence[int], layout: Layout, headers: Sequence[Sequence[int]] | None, vocab_size: int
) -> tuple[Tensor, Cursor]:
    """The prompt (n,) of a document, and a cursor that stands after it.

    Raises:
        TypeError, ValueError: see `check_prompts`; the grammar does not allow it, or nothing can follow its end.
    """
    (prompt,) = check_prompts([prompt_ids], vocab_size)
    cursor = Cursor(layout, headers)
    for index in prompt.tolist():
        cursor.advance(index)
    if cursor.ended or cursor.is_within_block:
        raise ValueError("prompt_ids ends after EOS or within a header or a block; end it in text or in a whole header")
    return prompt, cursor


def modality_of(grid: Grid, layout: Layout) -> str:
    """Name of the first modality whose grid has as many axes.

    Raises:
        ValueError: there is none.
    """
    for name, modality in layout.modalities.items():
        if modality.rank == len(grid):
            return name
    ranks = {name: modality.rank for name, modality in layout.modalities.items()}
    raise ValueError(f"no modality has a grid of {len(grid)} axes like {grid}; this layout's axes: {ranks}")
