"""Stages of a job that train no network: text tokenizer, joined tokenizers, token shards.

    class Count:
        def __init__(self, source: str) -> None: ...
        def run(self, folder: Path) -> int: ...            0, or 1 where some of the input was bad

    from emu.training.stages import STAGES
    STAGES.register("count", Count)                        # stages: [{name: counted, command: count, options: {source: a.jsonl}}]

A stage is made of its options before the job starts, and run when those before it are done. A stage that was killed is run again in the
same folder: it either goes on there or starts anew, and its result is that of an undisturbed run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from emu.data.tokenizing import SourceOptions, open_source
from emu.data.tokenizing.encoder_start import usual_processes
from emu.data.tokenizing.encoding_processes import Encoding
from emu.data.tokenizing.shard_run import ShardRun
from emu.data.tokenizing.text_sample import TextSample, texts_of
from emu.layouts import Emu3Layout
from emu.lines import LineProblem
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.stopping import say
from emu_tokenizers import TextTokenizer, VisionTokenizer
from emu_tokenizers.files import new_folder
from emu_tokenizers.registry import Registry

LEAST_IDS = 300
"""That may be asked for of a text tokenizer; a few words do not fill even these."""
NUM_BYTES = 256
"""Ids that every text tokenizer has."""


class JobStage(Protocol):
    """What a job runs between stages that train."""

    def run(self, folder: Path) -> int:
        """Do the work in a folder.

        Returns:
            0, or 1 where it was done in part, some of the input being bad.

        Raises:
            Stopped: Ctrl-C or SIGTERM; the same call goes on.
        """
        ...


class FitText:
    """Trains a text tokenizer on the texts of a source, as `emu fit-text` does.

    Args:
        source: see `emu.data.tokenizing.open_source`.
        vocab_size: ids at most; fewer where the texts do not fill them.
        headers: texts besides those, such as headers of pictures, so that their characters have ids.
        sample_mib: of texts that are trained on.
        options: of the source, see `SourceOptions`.
    """

    def __init__(
        self,
        source: str,
        vocab_size: int = 8000,
        headers: Sequence[str] = (),
        sample_mib: int = 64,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if vocab_size < LEAST_IDS:
            raise ValueError(f"vocab_size is {vocab_size}; expected {LEAST_IDS} or more, 256 ids are bytes")
        self.source, self.vocab_size, self.headers = source, vocab_size, tuple(headers)
        self.sample_mib, self.options = sample_mib, SourceOptions(**(options or {}))

    def run(self, folder: Path) -> int:
        """Write the tokenizer into the folder; see `JobStage`."""
        source, sample, bad = open_source(self.source, self.options), TextSample(self.sample_mib << 20), 0
        for record in source.records():
            try:
                for number, text in enumerate(texts_of(source.read(record))):
                    sample.add(f"{record.key} {number}", text)
            except Exception:  # of any kind; the stage that tokenizes tells bad records one by one
                bad += 1
        tokenizer = filled([*self.headers, *sample.texts()], self.vocab_size)
        tokenizer.save_pretrained(folder)
        say(f"text tokenizer of {tokenizer.size} ids from {sample.num_seen:,} texts")
        return 1 if bad else 0


def filled(corpus: Sequence[str], most: int) -> TextTokenizer:
    """A text tokenizer of at most this many ids: as many as the corpus fills.

    Raises:
        ValueError: the corpus has more characters than that, or is empty.
    """
    for size in (*range(most, LEAST_IDS, -max(1, most // 40)), *range(min(most, LEAST_IDS), NUM_BYTES, -1)):
        try:
            return TextTokenizer.train(corpus, size)
        except ValueError as error:
            refused = error
            if "more than this corpus fills" not in str(error):
                break
    raise refused


class Join:
    """Joins a text and a vision tokenizer to one of documents, as `emu join` does.

    Args:
        text, vision: their folders.
        layout: order of tokens.
        modalities: what documents may hold beside text.
    """

    def __init__(
        self, text: str, vision: str, layout: str = Emu3Layout.name, modalities: Sequence[str] = ("image", "video")
    ) -> None:
        self.text, self.vision, self.layout, self.modalities = text, vision, layout, list(modalities)

    def run(self, folder: Path) -> int:
        """Write the tokenizer into the folder; see `JobStage`."""
        text, vision = TextTokenizer.from_pretrained(self.text), VisionTokenizer.from_pretrained(self.vision)
        tokenizer = MultimodalTokenizer(text, vision, layout=self.layout, modalities=self.modalities)
        with new_folder(folder) as partial:
            tokenizer.save_pretrained(partial)
        return 0


class Tokenize:
    """Makes token shards of a source, as `emu tokenize` does; finished shards stay when it is run again.

    Args:
        source: see `emu.data.tokenizing.open_source`.
        tokenizer: folder of the joined tokenizers.
        size: of pictures, as of `emu tokenize --size`.
        shard_size: documents of a shard.
        processes: that encode; None for one each 1,000 documents, up to the processors.
        options: of the source, see `SourceOptions`.
    """

    def __init__(
        self,
        source: str,
        tokenizer: str,
        size: str | None = None,
        shard_size: int = 4096,
        processes: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if shard_size < 1:
            raise ValueError(f"shard_size is {shard_size}; expected 1 or more")
        self.source, self.tokenizer, self.size = source, tokenizer, size
        self.shard_size, self.processes = shard_size, processes
        self.options = SourceOptions(**(options or {}))

    def run(self, folder: Path) -> int:
        """Write the shards into the folder; see `JobStage`."""
        source = open_source(self.source, self.options)
        records = source.records()
        first = next(records, None)
        if first is None:
            raise ValueError(f"{self.source} has no documents")
        encoding = Encoding(source, self.tokenizer, self.size)
        processes = self.processes or usual_processes(source.length, "cpu")
        bad: list[LineProblem] = []
        folder.mkdir(parents=True, exist_ok=True)
        with tqdm(total=source.length, unit="document", dynamic_ncols=True, disable=None) as bar:
            run = ShardRun(folder, encoding, encoding.reader(), self.shard_size, processes=processes)
            run.progress = bar.update
            run.report = lambda number, problems: bad.extend(problems)
            run.write(itertools.chain([first], records))
        if not run.close():
            raise ValueError(f"none of the documents of {self.source} can be used: {bad[0] if bad else 'unknown why'}")
        say(f"{run.num_documents} documents in {folder}, {len(bad)} bad ones" + (f": {bad[0]}" if bad else ""))
        return 1 if bad else 0


STAGES: Registry[type[JobStage]] = Registry("stage", {"fit-text": FitText, "join": Join, "tokenize": Tokenize})
"""Kinds of stages that train no network, by the word that a recipe says in `command`."""
register = STAGES.register
