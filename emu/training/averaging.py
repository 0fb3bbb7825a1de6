"""The mean of the weights of several checkpoints of a run, or of models of one shape: often better than the last one (arXiv 1803.05407)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from emu.checkpoints.weights import Checkpoint
from emu.hub.convert import ConversionSource
from emu.training.vocabularies import fingerprint
from emu.training.weight_sources import HEAD, WeightSource, open_weights


@dataclass(frozen=True)
class MeanCheckpoint(Checkpoint):
    """A checkpoint whose tensors are means; names, dtypes and files are those of another one.

    Attributes:
        ours: our name of a tensor.
        weights: whose mean it is.
    """

    ours: Callable[[str], str] = str
    weights: Sequence[WeightSource] = ()

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Names and means, in the dtype of the checkpoint's own; one tensor of one model is in memory at a time.

        Raises:
            ValueError: a mean holds NaN or infinity.
        """
        for name in self.entries if names is None else names:
            ours = self.ours(name)
            total: Tensor | None = None
            for weights in self.weights:
                one = weights.read(ours).double()
                if not one.isfinite().all():
                    raise ValueError(f"{weights.place}: {ours!r} holds NaN or infinity; leave it out of --average")
                total = one if total is None else total.add_(one)
            assert total is not None
            yield name, total.div_(len(self.weights)).to(self.entries[name].dtype)


def averaged(source: ConversionSource, paths: Sequence[str | Path]) -> ConversionSource:
    """A source whose transformer has the mean of others' weights; configuration and tokenizers are its own.

    Args:
        source: see `emu.hub.convert.open_source`.
        paths: folders of models of any family, and checkpoints of runs.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: one is damaged, or is of another shape or vocabulary than the source.
    """
    weights = [open_weights(path) for path in paths]
    wanted = {source.family.to_ours(name): source.checkpoint.entries[name].shape for name in source.language_names}
    if source.config.tie_word_embeddings:
        wanted.pop(HEAD, None)
    known = fingerprint(source.config)
    for one in weights:
        wrong = [name for name, shape in wanted.items() if one.shapes.get(name) != shape]
        if wrong:
            raise ValueError(
                f"{one.place} cannot be averaged with the model in {source.checkpoint.folder}: {wrong[0]!r} has shape "
                f"{one.shapes.get(wrong[0], 'none')} there and {wanted[wrong[0]]} here; name checkpoints of one run"
            )
        if known is not None and one.vocabulary not in (None, known):
            raise ValueError(
                f"{one.place} is of the vocabulary {one.vocabulary}, the model in {source.checkpoint.folder} of {known}; rows of different "
                "ids have no mean"
            )
    given = source.checkpoint
    mean = MeanCheckpoint(given.folder, given.entries, given.pickled, source.family.to_ours, weights)
    return replace(source, checkpoint=mean)
