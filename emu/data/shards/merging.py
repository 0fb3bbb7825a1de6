"""Several folders of token shards as one, in the format version that is written now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch

from emu.data.shards.arrays import marker_path
from emu.data.shards.checksums import DamagedShards, read_json
from emu.data.shards.reading import TokenShards
from emu.data.shards.shard import Shard
from emu.data.shards.writing import MANIFEST, TokenizedDocument, shard_numbers, write_manifest, write_shard
from emu.documents import Span, TokenDocument
from emu_tokenizers.files import holding


class SpanFinder(Protocol):
    """What merging needs of a layout."""

    def spans(self, ids: torch.Tensor) -> tuple[Span, ...]: ...


def differing(first: TokenShards, other: TokenShards) -> dict[str, tuple[str | None, str | None]]:
    """Fingerprints in which two folders differ, by name: that of the first and that of the other."""
    names = sorted(set(first.fingerprints) | set(other.fingerprints))
    both = {name: (first.fingerprints.get(name), other.fingerprints.get(name)) for name in names}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def merge(
    folders: Sequence[str | Path],
    output: Path,
    *,
    shard_size: int = 4096,
    layout: SpanFinder | None = None,
    progress: Callable[[Iterable[TokenizedDocument], int], Iterable[TokenizedDocument]] = lambda items, total: items,
) -> int:
    """Write the documents of folders, one after another, into a new folder of the version that is written.

    Args:
        folders: of the same tokenizers, of any version.
        output: a folder that holds no shards yet.
        shard_size: documents of a shard.
        layout: finds the segments of documents where a folder does not say where they lie (version 1); they stay unknown without.
        progress: wraps the documents and their number, e.g. with a bar.

    Returns:
        The number of documents.

    Raises:
        ValueError: folders of different tokenizers, damage, or documents that are not of the layout.
        FileExistsError: the output holds shards already.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; expected 1 or more")
    sources = [TokenShards(folder) for folder in folders]
    if not sources:
        raise ValueError("no folders to merge; name one or more")
    for source in sources[1:]:
        found = differing(sources[0], source)
        if found:
            raise ValueError(f"{sources[0].folder} and {source.folder} were made by different tokenizers: {found}")
    total, number = sum(map(len, sources)), 0
    with holding(output, "emu shards merge"):
        _check_free(output)
        documents = iter(progress((item for source in sources for item in stored_documents(source, layout)), total))
        while block := list(islice(documents, shard_size)):
            write_shard(output, number, block, sources[0].vocabulary, {})
            number += 1
        write_manifest(output, number, sources[0].vocabulary, sources[0].fingerprints)
    return total


def _check_free(output: Path) -> None:
    """Refuse a folder that holds shards, but for those of a merge that was stopped.

    Raises:
        FileExistsError: it holds some, finished or not.
    """
    if (output / MANIFEST).exists():
        raise FileExistsError(f"{output} holds token shards already; name a new folder")
    for number in shard_numbers(output):
        with suppress(DamagedShards):
            if read_json(marker_path(output, number)).get("about"):
                raise FileExistsError(
                    f"{output} holds shards of an emu tokenize that is not finished; name a new folder"
                )


def stored_documents(source: TokenShards, layout: SpanFinder | None = None) -> Iterator[TokenizedDocument]:
    """The documents of a folder as they were written; arguments and errors as in `merge`."""
    for number, shard in enumerate(source.open_shards()):
        for place in range(len(shard.starts) - 1):
            found = _stored(shard, place)
            if layout is not None and not shard.has_segments:
                try:
                    spans = layout.spans(found.document.ids)
                except ValueError as error:
                    raise ValueError(f"document {place} of shard {number} of {source.folder}: {error}") from error
                document = TokenDocument(found.document.ids, found.document.weights, _split(spans, found.caption))
                found = TokenizedDocument(document, found.caption)
            yield found


def _stored(shard: Shard, place: int) -> TokenizedDocument:
    start, stop = shard.starts.item(place), shard.starts.item(place + 1)
    ids = torch.from_numpy(shard.ids.read(start, stop).astype("int64"))
    weights = torch.from_numpy(shard.table[shard.weights.read(start, stop)])
    rows = shard.spans[shard.span_starts[place] : shard.span_starts[place + 1]].tolist()
    kinds = [shard.kinds[kind] for _, _, kind, _ in rows]
    caption = (0, 0) if shard.captions is None else tuple(shard.captions[place].tolist())
    if not shard.has_segments:
        return TokenizedDocument(TokenDocument(ids, weights), caption)
    spans = [
        Span(first, length, kind.modality, kind.grid, kind.meta)
        for (first, length, _, _), kind in zip(rows, kinds, strict=True)
    ]
    source = kinds[0].source if kinds else ""
    return TokenizedDocument(TokenDocument(ids, weights, tuple(spans)), caption, tuple(k.role for k in kinds), source)


def _split(spans: Sequence[Span], caption: tuple[int, int]) -> tuple[Span, ...]:
    """The spans, with the one around a caption divided at the caption's borders: text beside text was read as one."""
    found = []
    for span in spans:
        stop = span.start + span.length
        borders = sorted({span.start, stop, *(b for b in (caption[0], sum(caption)) if span.start < b < stop)})
        found += [span._replace(start=a, length=b - a) for a, b in zip(borders, borders[1:], strict=False)]
    return tuple(found)
