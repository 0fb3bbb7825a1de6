"""What a batch leaves in its folder: files or tars of samples, the manifest, the problems and an overview; one process closes it."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from emu.cli.line_problems import PROBLEMS, Problems
from emu.cli.manifest import MANIFEST, OutputManifest
from emu.cli.prompts import Request
from emu.cli.sample_tars import extract, names_in, tar_name, write_samples
from emu.data.tokenizing.ranks import Rank
from emu.data.tokenizing.records import Record, digest
from emu.data.tokenizing.windows import cut
from emu.media import png_bytes, tiled
from emu_tokenizers.files import PARTIAL, read_json, write_file, write_json

FILES, WEBDATASET = FORMATS = ("files", "webdataset")
OVERVIEW = "overview.png"
OVERVIEW_LINES = 64
"""So many of the first finished requests stand in the overview."""
TAR_BYTES = 1 << 30
"""Bytes of pixels after which a tar ends even though it has room for more samples."""
UNPACKED = ".unpacked"
"""In the output: finished samples of a tar whose others are not finished yet."""
LEFT = re.compile(
    rf"({re.escape(MANIFEST)}|{re.escape(PROBLEMS)}|{re.escape(OVERVIEW)}|\d{{6,}}-seed\d+-[0-9a-f]{{8}}(\.\w+)?|\d{{6,}}-[0-9a-f]{{8}}\.tar)"
    r"\.(\d+(-\w+)?\.partial|partial-\w+|replaced-\w+)"
)
"""Temporary names of what a batch writes, which processes leave that are killed while they write."""


@dataclass
class BatchOutputs:
    """The outputs of one process, alone or one of several ranks.

    Args:
        folder: where outputs lie.
        model: what makes them.
        command: its name, e.g. "emu generate-images".
        rank: which process this is.
        tar_size: samples of a tar; None for plain files.
        media: suffix of the picture or clip of a sample, e.g. ".png".
        save: writes a result to a path without suffix, and returns the files.
        show: a picture of the files of one request, or of its sample's one file, for the overview.
        columns: how many outputs stand side by side in the overview.
        noted: what else the manifest holds of a result.
    """

    folder: Path
    model: str
    command: str
    rank: Rank
    tar_size: int | None
    media: str
    save: Callable[[Any, Path], list[Path]]
    show: Callable[[list[Path]], Image.Image]
    columns: int
    noted: Callable[[Any], Mapping[str, Any]] | None = None

    def begin(self, requests: Sequence[Request]) -> None:
        """Read what is finished; the folder is held.

        Raises:
            ValueError: some of the requests are finished in another format, or another rank works on others.
        """
        self.manifest = OutputManifest(self.folder, self.model, rank=self.rank)
        found = [record for request in requests if (record := self.manifest.find(request)) is not None]
        others = sum(is_sample(record) != (self.tar_size is not None) for record in found)
        if others:
            here, there = FORMATS if self.tar_size is None else FORMATS[::-1]
            raise ValueError(
                f"{others} of these requests are finished in {self.folder} in the format {there}, and --format is {here}; expected one "
                f"format; give --format {there}, or name another folder"
            )
        form = self.tar_size and [self.tar_size, self.media]
        work = digest(self.command, form, [request.digest(self.model) for request in requests])
        self.told = {"work": work[:16], "requests": len(requests), "model": self.model, "ranks": self.rank.size}
        self.rank.begin(self.folder, self.told)

    def share(self, requests: Sequence[Request]) -> list[tuple[int, list[Request]]]:
        """(number, requests) of this rank's blocks: every so many requests as files, or whole tars."""
        if self.tar_size is None:
            return [(0, list(requests[self.rank.number :: self.rank.size]))]
        sized = (Record(request.place, request, self._bytes(request)) for request in requests)
        blocks = enumerate(cut(sized, self.tar_size, TAR_BYTES))
        return [(number, [one.content for one in block]) for number, block in blocks if self.rank.takes(number)]

    def _bytes(self, request: Request) -> int:
        settings = request.settings
        return 3 * math.prod(settings.size or ()) * (1 if self.media == ".png" else settings.frames)

    def add(self, request: Request, result: Any) -> None:
        """Write a result, and note that its request is finished."""
        stem, found = self.manifest.stem(request, request.seed), {} if self.noted is None else self.noted(result)
        if self.tar_size is None:
            self.manifest.add(request, self.save(result, self.folder / stem), **found)
        else:
            file = self.folder / UNPACKED / f"{stem}{self.media}"
            result.save(file)
            self.manifest.add(request, [file], **found)

    def pack(self, number: int, block: Sequence[Request]) -> None:
        """Move the finished samples of a block into a tar; plain files stay where they are.

        A process may have been killed when the tar was there and not all records said so.
        """
        if self.tar_size is None:
            return
        found = (self.manifest.find(request) for request in block)
        loose = [record for record in found if record is not None and record["files"][0].startswith(UNPACKED)]
        if not loose:
            return
        tars = sorted(self.folder.glob(f"{number:06d}-*.tar"))
        places = {name: tar.name for tar in tars for name in names_in(tar)}
        files = [self.folder / record["files"][0] for record in loose]
        new = [(file, record) for file, record in zip(files, loose, strict=True) if file.name not in places]
        if new:
            name = tar_name(number, [record["request"] for _, record in new])
            write_samples(self.folder / name, new)
            places |= {file.name: name for file, _ in new}
        self.manifest.note(
            [
                {**record, "files": [places[file.name]], "members": [file.name, f"{file.stem}.json"]}
                for file, record in zip(files, loose, strict=True)
            ]
        )
        for file in files:
            file.unlink(missing_ok=True)

    def note(self, problems: Problems) -> None:
        """Note that this rank has done its share, but for the lines that are bad."""
        write_json(self.rank.folder(self.folder) / PROBLEMS, problems.table())
        self.rank.note(self.folder, self.told)

    def close(self, requests: Sequence[Request], problems: Problems) -> Problems | None:
        """Write the manifest, the problems and the overview as one process does for all ranks.

        Args:
            requests: of all ranks, in order.
            problems: of this process.

        Returns:
            The problems of all ranks; None where others are not done, and nothing was written.
        """
        with self.rank.closing(self.folder, self.told) as is_last:
            if not is_last:
                return None
            if self.rank.size > 1:
                parts = [Rank(number, self.rank.size).folder(self.folder) for number in range(self.rank.size)]
                try:
                    tables = [read_json(part / PROBLEMS) for part in parts]
                except FileNotFoundError:  # another rank closed it, where a folder has no locks
                    return None
                problems = Problems(1.0, quiet=True)
                for table in tables:
                    problems.take(table)
                self.manifest = OutputManifest(self.folder, self.model)
            try:
                problems.write(self.folder)
                records = self.manifest.close(requests)
                self._sweep()
                self._write_overview(records[:OVERVIEW_LINES])
            except FileNotFoundError as error:
                # Another rank that closes it too, where a folder has no locks, swept away what this one was writing.
                if self.rank.size == 1 or not str(error.filename).endswith(PARTIAL):
                    raise
                return None
            return problems

    def _sweep(self) -> None:
        """Take away what killed processes left half-written, and samples that stand in a tar."""
        for path in self.folder.iterdir():
            if not LEFT.fullmatch(path.name):
                continue
            if ".replaced-" in path.name:  # an earlier output under this name, in which a user may have put files
                for frame in path.glob("[0-9]*.png"):
                    frame.unlink(missing_ok=True)
                with suppress(OSError):
                    path.rmdir()
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        unpacked = self.folder / UNPACKED
        if unpacked.is_dir():
            known = self.manifest.files()
            for file in unpacked.iterdir():
                if f"{UNPACKED}/{file.name}" not in known:
                    file.unlink(missing_ok=True)
            with suppress(OSError):
                unpacked.rmdir()

    def _write_overview(self, records: Sequence[Mapping[str, Any]]) -> None:
        if not records:
            return
        with tempfile.TemporaryDirectory() as place:
            sheet = tiled([self.show(self._files(record, Path(place))) for record in records], self.columns)
        write_file(self.folder / OVERVIEW, png_bytes(sheet, {"model": self.model, "first": len(records)}))

    def _files(self, record: Mapping[str, Any], place: Path) -> list[Path]:
        files = [self.folder / name for name in record["files"]]
        return [extract(files[0], record["members"][0], place)] if "members" in record else files


def is_sample(record: Mapping[str, Any]) -> bool:
    """Whether a record of the manifest is that of a sample of a tar."""
    return any(name.startswith(UNPACKED) or name.endswith(".tar") for name in record["files"])
