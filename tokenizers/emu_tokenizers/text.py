"""Text to ids and back: a SentencePiece model trained by this package, or a Hugging Face fast tokenizer from a folder, with one interface.

Plain text only. Any user input, `<|image start|>` included, becomes ordinary text ids; the special tokens of a Hugging Face
tokenizer are disabled, since control tokens belong to the layout and not to the text.

A model trained here round-trips every string exactly: text is not normalised, and unseen characters become bytes
(SentencePiece, arXiv 1808.06226, with byte fallback). A Hugging Face tokenizer is as exact as its own normaliser.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from emu_tokenizers.files import write_file
from emu_tokenizers.folders import TEXT_FOLDER, find_part

SENTENCEPIECE_FILE, HUGGING_FACE_FILE = "tokenizer.model", "tokenizer.json"
MODEL_TYPES = ("bpe", "unigram")
_SPACE = "\u2581"  # what SentencePiece writes for a space
_PROBE = f"  an exact  round\ttrip\n\n{_SPACE} \u00e9\U0001f600<|image start|> "


class _Backend(Protocol):
    size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def pieces(self) -> dict[str, int]: ...


class TextTokenizer:
    """An exact pair of plain text and ids below `size`.

    Made by `train` or `from_pretrained`.

    Args:
        data: a SentencePiece model or the content of a `tokenizer.json`.
        file_name: name of its file, which says which of the two it is.

    Attributes:
        size: number of ids; every id that `encode` returns is below it.
    """

    def __init__(self, data: bytes, file_name: str) -> None:
        self._data, self._file_name = data, file_name
        self._backend: _Backend = _SentencePiece(data) if file_name == SENTENCEPIECE_FILE else _HuggingFace(data)
        self.size = self._backend.size

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the model: equal for tokenizers that give equal ids."""
        return hashlib.sha256(self._data).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; control words in it are treated as text.

        Raises:
            TypeError: `text` is not a string.
            ValueError: `text` has an unpaired surrogate, which is not a character.
        """
        if not isinstance(text, str):
            raise TypeError(f"the text is {type(text).__name__}; expected str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "the text holds half of a surrogate pair, which no encoding can write; decode its source with errors='replace'"
            ) from error
        return self._backend.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; the inverse of `encode`. Bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: an id is outside 0..size - 1.
        """
        ids = [int(index) for index in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.size:
            wrong = next(index for index in ids if not 0 <= index < self.size)
            raise ValueError(f"id {wrong} is not a text id; this tokenizer has the ids 0..{self.size - 1}")
        return self._backend.decode(ids)

    def pieces(self) -> dict[str, int]:
        """Piece -> id, as the tokenizer's file writes it: equal pieces of two tokenizers of one kind stand for equal text."""
        return self._backend.pieces()

    @classmethod
    def train(
        cls,
        corpus: Iterable[str],
        vocab_size: int,
        *,
        model_type: str = "bpe",
        character_coverage: float = 0.9995,
        split_digits: bool = True,
    ) -> TextTokenizer:
        """Train a SentencePiece model; equal corpora give equal models.

        Args:
            corpus: texts, read once and kept in memory.
            vocab_size: number of ids, including 256 bytes.
            model_type: "bpe" or "unigram".
            character_coverage: share of the corpus whose characters get an id of their own; the rest become bytes.
            split_digits: whether every digit is a separate piece, which suits numbers in headers.

        Raises:
            TypeError: the corpus is one string or holds something else than strings.
            ValueError: the corpus is empty, or `vocab_size` is too small for its characters or too large for its text.
        """
        if model_type not in MODEL_TYPES:
            raise ValueError(f"model_type is {model_type!r}; expected one of {MODEL_TYPES}")
        if isinstance(corpus, str):
            raise TypeError("the corpus is a single str; expected an iterable of texts, e.g. [text]")
        texts = list(_checked(corpus))
        if not texts:
            raise ValueError("the corpus is empty; expected at least one text that is not blank")
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                vocab_size=vocab_size,
                model_type=model_type,
                character_coverage=character_coverage,
                split_digits=split_digits,
                byte_fallback=True,
                required_chars=_SPACE,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                max_sentence_length=1 << 30,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                unk_id=0,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(_refusal(str(error), vocab_size)) from error
        return cls(written.getvalue(), SENTENCEPIECE_FILE)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> TextTokenizer:
        """Read a folder with a `tokenizer.json` (Hugging Face) or a `tokenizer.model` (SentencePiece), such a file, or the one in a
        model's folder.

        Raises:
            FileNotFoundError: there is neither.
            ValueError: the file cannot be read as what its name says, or its SentencePiece model changes text.
        """
        path = Path(find_part(path, TEXT_FOLDER))
        candidates = [path] if path.is_file() else [path / HUGGING_FACE_FILE, path / SENTENCEPIECE_FILE]
        for file in candidates:
            if file.is_file():
                name = HUGGING_FACE_FILE if file.suffix == ".json" else SENTENCEPIECE_FILE
                try:
                    return cls(file.read_bytes(), name)
                except ValueError as error:
                    raise ValueError(f"{file}: {error}") from error
        raise FileNotFoundError(
            f"no text tokenizer at {path}; expected a folder with {HUGGING_FACE_FILE} or {SENTENCEPIECE_FILE}"
            + ("" if path.exists() else " (the path does not exist)")
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model into a folder, under the name that `from_pretrained` looks for."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / self._file_name, self._data)
        for other in {SENTENCEPIECE_FILE, HUGGING_FACE_FILE} - {self._file_name}:
            (folder / other).unlink(missing_ok=True)

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[bytes, str]]:
        return TextTokenizer, (self._data, self._file_name)

    def __repr__(self) -> str:
        return f"TextTokenizer({self.size} ids, {self._file_name}, fingerprint {self.fingerprint})"


class _SentencePiece:
    """A SentencePiece model whose pieces are read back as bytes, so that nothing is lost between pieces."""

    def __init__(self, data: bytes) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ValueError("this is not a SentencePiece model") from error
        self.size = self._processor.get_piece_size()
        self._bytes = [self._bytes_of(index) for index in range(self.size)]
        self._space_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise ValueError(
                "this SentencePiece model does not read text back exactly (no byte fallback, a normaliser or a dummy prefix); "
                f"train one with TextTokenizer.train, or convert it to a Hugging Face {HUGGING_FACE_FILE}"
            )

    def _bytes_of(self, index: int) -> bytes:
        piece = self._processor.id_to_piece(index)
        if self._processor.is_byte(index):
            return bytes([int(piece[3:5], 16)])
        return b"" if self._processor.is_control(index) else piece.replace(_SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Ids; the sign that SentencePiece writes for a space goes in as its bytes, else it would come back as a space."""
        first, *others = text.split(_SPACE)
        ids: list[int] = self._processor.encode(first)
        for part in others:
            ids += self._space_ids + self._processor.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes[index] for index in ids).decode("utf-8", errors="replace")

    def pieces(self) -> dict[str, int]:
        return {self._processor.id_to_piece(index): index for index in range(self.size)}


class _HuggingFace:
    """A fast tokenizer without its added tokens: what it finds in text is its ordinary vocabulary."""

    def __init__(self, data: bytes) -> None:
        try:
            table = json.loads(data)
            self._tokenizer = tokenizers.Tokenizer.from_str(
                json.dumps({**table, "added_tokens": [], "post_processor": None})
            )
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"this is not a tokenizer.json that the tokenizers library reads: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.size = max(self._tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def pieces(self) -> dict[str, int]:
        return dict(self._tokenizer.get_vocab())


def _checked(corpus: Iterable[str]) -> Iterator[str]:
    for index, text in enumerate(corpus):
        if not isinstance(text, str):
            raise TypeError(f"item {index} of the corpus is {type(text).__name__}; expected str")
        if text.strip():
            yield text


def _refusal(message: str, vocab_size: int) -> str:
    """SentencePiece's message in terms of this interface's arguments."""
    if most := re.search(r"too high .*<= (\d+)", message):
        return f"vocab_size is {vocab_size}, more than this corpus fills; expected at most {most[1]}"
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"vocab_size is {vocab_size}, too small for the bytes and characters of this corpus; expected at least {least[1]}"
    return f"SentencePiece could not train on this corpus with vocab_size {vocab_size}: {message}"
