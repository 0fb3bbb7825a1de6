"""Folders of token shards small enough to damage, shared by the tests of shards."""

import torch

from emu.data.shards import TokenizedDocument, write_manifest, write_shard
from emu.documents import CodeSegment, TextSegment, TokenDocument
from emu.layouts import Emu3Layout
from emu.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build(300, {"vision": 512})


class Letters:
    """A text codec whose ids are the characters' numbers."""

    def encode(self, text):
        return [ord(letter) % 300 for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


LAYOUT = Emu3Layout(VOCABULARY, Letters())


def make_documents(count, seed=0):
    """Documents of random ids whose segments are not known, every second one with a caption."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        ids = torch.randint(0, VOCABULARY.size, (5 + i % 9,), generator=generator)
        weights = torch.tensor([0.0, 0.5, 1.0])[torch.randint(0, 3, (len(ids),), generator=generator)]
        made.append(TokenizedDocument(TokenDocument(ids, weights), (1, 2) if i % 2 else (0, 0)))
    return made


def text(words, weight=1.0):
    return TextSegment(torch.tensor(Letters().encode(words)), weight)


def picture(rows, columns, first=0, weight=1.0):
    codes = (first + torch.arange(rows * columns)).reshape(rows, columns) % 512
    return CodeSegment("image", codes, weight=weight)


def clip(frames, rows, columns, fps=8):
    codes = torch.arange(frames * rows * columns).reshape(frames, rows, columns) % 512
    return CodeSegment("video", codes, {"frames": 4 * frames, "fps": fps})


def laid_out(*segments, caption=None, roles=(), source=""):
    """A document of these segments; `caption` is the number of the one that may be left out."""
    document = LAYOUT.build(segments)
    span = None if caption is None else document.spans[caption]
    return TokenizedDocument(document, (0, 0) if span is None else (span.start, span.length), roles, source)


def make_album():
    """Documents of pictures, clips and words whose segments are known; what the folders in tests/data hold, three a shard."""
    return [
        laid_out(text("a red circle", 0.1), picture(2, 3), caption=0),
        laid_out(picture(2, 3, 7), text("What is it? ", 0.0), text("a square")),
        laid_out(text("only words")),
        laid_out(text("it rolls"), clip(2, 2, 2), caption=0),
        laid_out(text("a wide one"), picture(2, 4, 100), caption=0),
        laid_out(picture(2, 3), text("then"), picture(2, 3, 50), text("the end")),
        laid_out(clip(1, 2, 2, fps=4)),
        laid_out(picture(3, 2, 5), text("tall"), caption=1),
    ]


def write(folder, documents, per_shard=7, fingerprint="a", **fingerprints):
    """A finished folder."""
    starts = range(0, len(documents), per_shard)
    for number, start in enumerate(starts):
        write_shard(folder, number, documents[start : start + per_shard], VOCABULARY, {"start": start})
    known = {"vocabulary": VOCABULARY.fingerprint, "text": fingerprint, **fingerprints}
    write_manifest(folder, len(starts), VOCABULARY, known)
    return folder


def same(ours, theirs):
    """Whether two documents are bit for bit the same."""
    return torch.equal(ours.ids, theirs.ids) and torch.equal(ours.weights, theirs.weights)
