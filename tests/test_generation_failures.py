"""What fails in a running batch fails alone: broken numbers, callbacks that raise, passes that do not end, interruptions."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from emu.generation import Batcher, DocumentTextRequest, Engine, RequestCancelled, Sampling
from emu.generation import cohort as cohort_module
from emu.generation import prefill as prefill_module
from emu.generation.limits import BrokenLogits
from tests.test_generation_batcher import LAYOUT, VOCABULARY, alone, engine_of, picture


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Prompts of several chunks, and beginnings that are long enough to be shared."""
    monkeypatch.setattr(prefill_module, "PREFILL_CHUNK", 8)
    monkeypatch.setattr(prefill_module, "WORTH_COPYING", 4)


def spoil(engine: Engine, letter: str) -> None:
    """Let a letter's numbers be NaN."""
    (index,) = LAYOUT.encode_text(letter)
    engine.model.get_input_embeddings().weight.data[index] = torch.nan


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("chunk", [8, 64], ids=["several chunks", "one chunk"])
def test_a_prompt_that_breaks_hands_nothing_broken_to_those_that_begin_as_it_does(monkeypatch, deterministic, chunk):
    monkeypatch.setattr(prefill_module, "PREFILL_CHUNK", chunk)
    engine, whole = engine_of(deterministic), picture("abcdefghm")
    expected = alone(engine, whole)
    spoil(engine, "n")
    batcher = Batcher(engine)
    broken, other = batcher.submit(picture("abcdefghn")), batcher.submit(whole)
    batcher.run()
    assert torch.equal(other.result(), expected)
    with pytest.raises(BrokenLogits):
        broken.result()


def test_a_broken_request_that_is_taken_back_leaves_nothing_to_those_that_get_its_rows():
    engine, following = engine_of(deterministic=False), [picture("fed"), picture("b")]
    expected = [alone(engine, one) for one in following]
    spoil(engine, "n")
    batcher = Batcher(engine, slots=4)
    gone = [batcher.submit(picture(words)) for words in ("n" * 40, "abcdefgh" * 4)]
    for _ in range(3):  # chunks: nothing is drawn yet, so nobody has looked at a number
        batcher.step()
    for ticket in gone:
        ticket.cancel()
    tickets = [batcher.submit(one) for one in following]
    batcher.run()
    assert all(torch.equal(ticket.result(), one) for ticket, one in zip(tickets, expected, strict=True))


def test_a_broken_request_that_moves_leaves_nothing_in_the_rows_that_it_had(monkeypatch):
    """On a GPU nobody looks at its numbers before something is given away."""
    monkeypatch.setattr(cohort_module, "knows_at_once", lambda device: False)
    engine, last = engine_of(deterministic=False), picture("fed", grid=(5, 5))
    expected = alone(engine, last)
    spoil(engine, "n")
    batcher = Batcher(engine, slots=2)
    batcher.submit(picture("", grid=(1, 2)))
    moved = batcher.submit(picture("nnnnnnnn", grid=(5, 5)))
    following = batcher.submit(last)
    batcher.run()
    assert torch.equal(following.result(), expected) and isinstance(moved.error(), BrokenLogits)


def test_the_memory_of_a_pass_that_failed_is_free_for_those_who_wait(monkeypatch):
    batcher = Batcher(engine_of(), slots=1)
    first, second = batcher.submit(picture()), batcher.submit(picture(seed=1))
    batcher.step()
    cache, run = weakref.ref(batcher._running.cache), batcher.engine.model.forward_tokens

    def full(*_, **__):
        monkeypatch.setattr(batcher.engine.model, "forward_tokens", run)
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(batcher.engine.model, "forward_tokens", full)
    gc.disable()
    try:
        batcher.step()
        assert isinstance(first.error(), torch.OutOfMemoryError) and cache() is None
    finally:
        gc.enable()
    batcher.run()
    assert torch.equal(second.result(), alone(batcher.engine, picture(seed=1)))


def test_what_the_grammar_of_a_document_raises_ends_its_request_alone():
    def follow(_):
        raise KeyError("no such rule")

    batcher, head = Batcher(engine_of()), torch.tensor([VOCABULARY.control("bos"), *LAYOUT.encode_text("abc")])
    document = batcher.submit(DocumentTextRequest(head, Sampling(), (VOCABULARY.text,), follow, 5))
    other = batcher.submit(picture())
    batcher.run()
    assert torch.equal(other.result(), alone(batcher.engine, picture()))
    with pytest.raises(KeyError, match="no such rule"):
        document.result()


def test_an_interrupted_batch_ends_what_ran_and_goes_on_with_what_waited():
    def interrupt(*_):
        raise KeyboardInterrupt

    batcher = Batcher(engine_of(), slots=2)
    ran = [batcher.submit(picture(), on_row=interrupt), batcher.submit(picture(seed=1))]
    waited = batcher.submit(picture(seed=2))
    with pytest.raises(KeyboardInterrupt):
        batcher.run()
    assert all(isinstance(ticket.error(), RequestCancelled) for ticket in ran) and not waited.done
    batcher.run()
    assert torch.equal(waited.result(), alone(batcher.engine, picture(seed=2)))
