"""Text tokenizers: exact round trips, inert control words, equal models from equal corpora."""

import json
import pickle
import random

import pytest
import sentencepiece
import tokenizers

from emu_tokenizers.text import TextTokenizer

CORPUS = [f"a handwritten {word} moving {way}" for word in ("one", "two", "seven") for way in ("left", "right", "up")]
SIZE = {"bpe": 300, "unigram": 278}
CONTROL_WORDS = ["<|image start|>", "<|endoftext|>", "<|extra_203|>", "<s></s><unk><pad>", "<0x41>", "[CLS]"]
AWKWARD = [
    "",
    " ",
    "   ",
    " a",
    "a ",
    "  a  b   ",
    "\n",
    "a\n\nb\r\n",
    "\t",
    "\0",
    "\u2581",
    " \u2581 \u2581",
    "\ufffd",
]
AWKWARD += ["\ufeff\u200b", "e\u0301 \u00e9", "\U0001f600\U0001f468\u200d\U0001f469", "12*34 8f 2.5fps", *CONTROL_WORDS]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request):
    return TextTokenizer.train(CORPUS, SIZE[request.param], model_type=request.param)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A byte-level BPE folder with special and other added tokens, padding and truncation switched on."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    model.add_special_tokens(["<|endoftext|>", "<|image start|>"])
    model.add_tokens(["[CLS]"])
    model.enable_padding(length=64)
    model.enable_truncation(8)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", model.token_to_id("<|endoftext|>"))]
    )
    folder = tmp_path_factory.mktemp("hugging_face")
    model.save(str(folder / "tokenizer.json"))
    return folder


def random_texts(count):
    generator = random.Random(0)
    spans = [(0, 128), (0x2500, 0x2600), (0x4E00, 0x4F00), (0xE000, 0x10FFFF), (32, 34)]
    for _ in range(count):
        length = generator.randrange(30)
        yield "".join(chr(generator.randrange(*generator.choice(spans))) for _ in range(length))


def test_every_string_comes_back_exactly(trained):
    for text in [*AWKWARD, *CORPUS, *random_texts(2000)]:
        ids = trained.encode(text)
        assert trained.decode(ids) == text
        assert all(0 <= index < trained.size for index in ids)


def test_control_words_become_ordinary_text(trained):
    for word in CONTROL_WORDS:
        assert len(trained.encode(word)) > 1
        assert trained.decode(trained.encode(word)) == word


def test_training_is_deterministic_and_fingerprinted():
    first, second = (TextTokenizer.train(iter(CORPUS), 300) for _ in range(2))
    other = TextTokenizer.train(CORPUS, 301)
    assert first.size == 300
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_digits_are_pieces_of_their_own():
    tokenizer = TextTokenizer.train(["size 1234*1234 and 1234"] * 5, 270)
    assert len(tokenizer.encode("1234")) == 4


def test_common_words_are_short(trained):
    assert len(trained.encode(CORPUS[0])) < len(CORPUS[0])


def test_long_texts_are_read_whole():
    word = "abcd" * 3000
    tokenizer = TextTokenizer.train([word, "\u4e2d" + word], 270, character_coverage=1.0)
    assert len(tokenizer.encode("\u4e2d")) == 1
    assert tokenizer.decode(tokenizer.encode(word)) == word


def test_saving_and_loading_keeps_the_tokenizer(trained, tmp_path):
    trained.save_pretrained(tmp_path / "new" / "folder")
    loaded = TextTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.encode(CORPUS[0]) == trained.encode(CORPUS[0])
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["tokenizer.model"]
    assert TextTokenizer.from_pretrained(tmp_path / "new" / "folder" / "tokenizer.model").size == trained.size


def test_tokenizers_travel_to_other_processes(trained):
    assert pickle.loads(pickle.dumps(trained)).encode(" a two") == trained.encode(" a two")


def test_hugging_face_folder_reads_text_back(hugging_face):
    tokenizer = TextTokenizer.from_pretrained(hugging_face)
    for text in [*AWKWARD, *random_texts(300)]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= index < tokenizer.size for index in ids)


def test_hugging_face_special_tokens_are_inert_in_text(hugging_face):
    tokenizer = TextTokenizer.from_pretrained(hugging_face)
    raw = tokenizers.Tokenizer.from_file(str(hugging_face / "tokenizer.json"))
    added = {raw.token_to_id(word) for word in ("<|endoftext|>", "<|image start|>", "[CLS]")}
    for word in CONTROL_WORDS:
        assert not added & set(tokenizer.encode(f"before {word} after"))
    assert tokenizer.size <= min(added)


def test_hugging_face_tokenizer_saves_its_file_unchanged(hugging_face, tmp_path):
    tokenizer = TextTokenizer.from_pretrained(hugging_face)
    TextTokenizer.train(CORPUS, 300).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_bytes() == (hugging_face / "tokenizer.json").read_bytes()
    assert TextTokenizer.from_pretrained(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(("vocab_size", "hint"), [(100, "at least"), (5000, "at most")])
def test_an_impossible_size_is_refused_with_a_possible_one(vocab_size, hint):
    with pytest.raises(ValueError, match=f"vocab_size is {vocab_size}.*{hint} \\d+"):
        TextTokenizer.train(CORPUS, vocab_size)


@pytest.mark.parametrize("corpus", [[], ["", "  "]])
def test_an_empty_corpus_is_refused(corpus):
    with pytest.raises(ValueError, match="corpus is empty"):
        TextTokenizer.train(corpus, 300)


@pytest.mark.parametrize("corpus", ["one text", ["a", 3]])
def test_a_corpus_of_other_things_is_refused(corpus):
    with pytest.raises(TypeError, match="corpus"):
        TextTokenizer.train(corpus, 300)


def test_an_unknown_model_type_is_refused():
    with pytest.raises(ValueError, match="wordpiece"):
        TextTokenizer.train(CORPUS, 300, model_type="wordpiece")


def test_what_is_no_text_is_refused(trained):
    with pytest.raises(TypeError, match="bytes"):
        trained.encode(b"text")
    with pytest.raises(ValueError, match="surrogate"):
        trained.encode("\ud83d")
    with pytest.raises(ValueError, match=f"id {trained.size} "):
        trained.decode([trained.size])


def test_a_missing_or_broken_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*tokenizer\.json.*does not exist"):
        TextTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model"):
        TextTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        TextTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": "none"}))
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        TextTokenizer.from_pretrained(tmp_path)


def test_a_sentencepiece_model_that_changes_text_is_refused(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=24, minloglevel=2
    )
    with pytest.raises(ValueError, match="does not read text back exactly"):
        TextTokenizer.from_pretrained(tmp_path)
