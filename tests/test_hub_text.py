"""The byte-level BPE of Emu3 gives the ids of the original, held against a plain loop over ranks."""

import random
import unicodedata

import pytest
import regex

from emu.families.emu3.text import PATTERN, from_ranks, merges, ranks_of, read_ranks, tokenizer_table, write_ranks
from emu.families.emu3.tiny import small_ranks
from emu_tokenizers import TextTokenizer

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXTS = [
    *("(hello) world", "line1\n\nline2", "def f(x):", "f(x)=sin(x)", "http://a.b/c_d", "IT'S", "90*90", ""),
    *(
        "  two  spaces ",
        "tab\t\ttab",
        "\r\n\r\n x",
        "e\u0301t\u00e9",
        "\U0001f600 \u65e5\u672c\u8a9e",
        "12345",
        "don't WON'T I'LL",
    ),
    *("<|image start|>4*4<|image token|>", "<|extra_204|>", "a\u00a0b\u2028c\u0085d", "\u017f's"),
]


def plain_bpe(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """What tiktoken does: a whole piece if it has a rank, else merge the pair of lowest rank, leftmost first, until none is left."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([byte]) for byte in piece]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def plain_encode(text: str, ranks: dict[bytes, int]) -> list[int]:
    text = unicodedata.normalize("NFC", text)
    return [index for piece in regex.findall(PATTERN, text) for index in plain_bpe(piece.encode(), ranks)]


@pytest.fixture(scope="module")
def ranks():
    return small_ranks()


@pytest.fixture(scope="module")
def tokenizer(ranks):
    return from_ranks(ranks)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_a_plain_loop(text, ranks, tokenizer):
    assert tokenizer.encode(text) == plain_encode(text, ranks)


def test_ids_equal_those_of_a_plain_loop_on_random_text(ranks, tokenizer):
    draw = random.Random(0)
    signs = [
        *map(chr, range(32, 127)),
        *"\n\r\t\u0301\u00e9\u00df\ufb01\u0661\u00bd\u65e5\ud55c\U0001f600\u2028\u3000'",
    ]
    for _ in range(500):
        text = "".join(draw.choice(signs) for _ in range(draw.randint(1, 30)))
        assert tokenizer.encode(text) == plain_encode(text, ranks), repr(text)


def test_random_ranks_merge_as_a_plain_loop_does():
    """Ranks that no training would give, with tokens that their own bytes never reach."""
    draw = random.Random(1)
    for _ in range(20):
        ranks = {bytes([byte]): byte for byte in range(256)}
        for _ in range(60):
            ranks.setdefault(bytes(draw.choices(b"abc", k=draw.randint(2, 5))), len(ranks))
        tokenizer = from_ranks(ranks)
        for _ in range(30):
            text = "".join(draw.choices("abc", k=draw.randint(1, 12)))
            assert tokenizer.encode(text) == plain_encode(text, ranks), (text, sorted(ranks)[256:])


@pytest.mark.parametrize("text", TEXTS)
def test_text_reads_back_as_its_normal_form(text, tokenizer):
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_control_words_of_a_user_are_text(tokenizer):
    words = ("<|endoftext|>", "<|extra_203|>", "<|image start|>", "<|visual token 000000|>", "<image>")
    assert all(max(tokenizer.encode(word)) < tokenizer.size and len(tokenizer.encode(word)) > 1 for word in words)


def test_the_split_of_transformers_differs_where_it_should(ranks, tokenizer):
    theirs = from_ranks(ranks, "transformers")
    assert theirs.encode("a shiba inu") == tokenizer.encode("a shiba inu")
    for text in ("def f(x):", "line1\n\nline2", "e\u0301"):
        assert theirs.encode(text) != tokenizer.encode(text)
        pieces = regex.findall(GPT2_PATTERN, text)
        assert theirs.encode(text) == [i for piece in pieces for i in plain_bpe(piece.encode(), ranks)]


def test_ranks_survive_files_and_tokenizers(ranks, tokenizer, tmp_path):
    write_ranks(ranks, tmp_path / "emu3.tiktoken")
    assert read_ranks(tmp_path / "emu3.tiktoken") == ranks
    assert ranks_of(tokenizer_table(tokenizer)) == ranks
    tokenizer.save_pretrained(tmp_path)
    again = TextTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint and again.size == len(ranks)


def test_every_token_has_at_most_one_merge(ranks):
    pairs = merges(ranks)
    assert len({left + right for left, right in pairs}) == len(pairs)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["IQ== 0", "?? 1"], "line 2"),
        (["IQ== 0", "Ig== 2"], "ranks up to 2"),
        (["IQ== 0", "Ig== 1"], "no token for the bytes"),
    ],
)
def test_a_broken_file_of_ranks_is_named(lines, message, tmp_path):
    file = tmp_path / "emu3.tiktoken"
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as error:
        read_ranks(file)
    assert str(file) in str(error.value)


def test_a_missing_file_of_ranks_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.tiktoken"):
        read_ranks(tmp_path / "none.tiktoken")


def test_an_unknown_split_is_refused(ranks):
    with pytest.raises(ValueError, match="original"):
        from_ranks(ranks, "qwen")
