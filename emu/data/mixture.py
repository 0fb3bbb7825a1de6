"""Which documents make up a training step: a pure function of (seed, step)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from emu.data.document_sources import DocumentSource
from emu.data.mixing_weights import rounded
from emu.documents import TokenDocument
from emu.randomness import KeyedPermutation, derive_key


class Reference(NamedTuple):
    """A document by its address.

    Attributes:
        source: name of its source.
        number: its place there.
        key: what its randomness is drawn from; differs from epoch to epoch.
    """

    source: str
    number: int
    key: int


class Mixture:
    """Fixed numbers of documents of each source in every step.

    Step s takes documents s*n .. s*n+n-1 of each source's endless stream, in which every epoch is a keyed permutation of the source. Counts
    are exact in every step, no document comes twice before all have come once, and no state is kept: sources of any length mix, each with
    epochs of its own.

    Args:
        sources: documents by name of the source.
        documents_per_step: how many of each source a step holds; a source that is left out, or has 0, is not drawn from.
        seed: chooses the orders and the keys.

    Raises:
        ValueError: names that are not of a source, a negative count, an empty source, or no documents at all; all of them in one message.
    """

    def __init__(
        self, sources: Mapping[str, DocumentSource], documents_per_step: Mapping[str, int], seed: int = 0
    ) -> None:
        problems = mixture_problems(sources, documents_per_step)
        if problems:
            raise ValueError("this mixture cannot be drawn: " + "; ".join(problems))
        self.sources = {name: source for name, source in sources.items() if documents_per_step.get(name, 0)}
        self.documents_per_step = {name: documents_per_step[name] for name in self.sources}
        self.seed = seed

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources drawn from, in the order in which `source_ids` of a packed step counts them."""
        return tuple(self.sources)

    def references(self, step: int) -> list[Reference]:
        """Addresses of the documents of a step, source by source.

        Raises:
            ValueError: the step is negative.
        """
        if step < 0:
            raise ValueError(f"step {step}; steps count from 0")
        return [reference for name in self.sources for reference in self._of_source(name, step)]

    def documents(self, step: int) -> list[TokenDocument]:
        """The documents of a step, in the order of `references`."""
        return [self.document(reference) for reference in self.references(step)]

    def document(self, reference: Reference) -> TokenDocument:
        """The document at an address."""
        return self.sources[reference.source].document(reference.number, reference.key)

    def length(self, reference: Reference) -> int | None:
        """Number of tokens of the document at an address, or None where its source has to build it to know."""
        measure = getattr(self.sources[reference.source], "length", None)
        return None if measure is None else measure(reference.number, reference.key)

    def _of_source(self, name: str, step: int) -> list[Reference]:
        size, count = len(self.sources[name]), self.documents_per_step[name]
        position, end = step * count, (step + 1) * count
        references: list[Reference] = []
        while position < end:
            epoch, offset = divmod(position, size)
            stop = min(size, offset + end - position)
            order = KeyedPermutation(size, derive_key("order", self.seed, name, epoch))
            for index in order(range(offset, stop)).tolist():
                references.append(Reference(name, index, derive_key("document", self.seed, name, epoch, index)))
            position += stop - offset
        return references


def counts_per_step(documents: Mapping[str, int] | int, shares: Mapping[str, float] | None = None) -> dict[str, int]:
    """Documents of each source in a step.

    Args:
        documents: by name of the source, or all of them together.
        shares: of each source, where `documents` is one number; in any unit, e.g. {"pictures": 3, "text": 1}.

    Returns:
        Whole numbers that add up to `documents`, as near to the shares as can be (largest remainders first).

    Raises:
        ValueError: shares where counts are given or none where they are needed, a share that is not a positive number, or one that comes
            to less than half a document.
    """
    if not isinstance(documents, int):
        if shares is not None:
            raise ValueError(
                "shares go with documents_per_step as one number; give either counts by source or a number with shares"
            )
        return dict(documents)
    if not shares:
        raise ValueError(f"documents_per_step is {documents}; give shares too, or counts by name of the source")
    bad = {name: share for name, share in shares.items() if not (share > 0 and math.isfinite(share))}
    if bad:
        raise ValueError(f"shares {bad}; expected positive numbers")
    counts = rounded(shares, documents)
    if min(counts.values()) == 0:
        none = min(shares, key=lambda name: shares[name])
        exact = documents * shares[none] / sum(shares.values())
        raise ValueError(
            f"the share of {none!r} comes to {exact:.2g} of {documents} documents a step, which is none; set documents_per_step to "
            f"{math.ceil(documents / exact)} or more"
        )
    return counts


def mixture_problems(sources: Mapping[str, DocumentSource], documents_per_step: Mapping[str, int]) -> list[str]:
    """Everything that keeps these sources from being mixed in these numbers, one sentence each."""
    problems = []
    unknown = sorted(set(documents_per_step) - set(sources))
    if unknown:
        problems.append(f"documents_per_step names the unknown sources {unknown}; there are {sorted(sources)}")
    for name, count in documents_per_step.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            problems.append(f"documents_per_step of {name!r} is {count!r}; expected an integer of 0 or more")
        elif count and name in sources and len(sources[name]) == 0:
            problems.append(f"source {name!r} is empty")
    if not any(documents_per_step.get(name) for name in sources):
        problems.append(
            f"no documents are asked for; give documents_per_step a positive count of one of {sorted(sources)}"
        )
    return problems
