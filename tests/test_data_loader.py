import pytest
import torch

from emu.data import EvaluationLoader, FunctionSource, ListSource, Mixture, PackedLoader
from emu.documents import TokenDocument


def make_document(length, first):
    return TokenDocument(torch.arange(length) + first, torch.ones(length))


def make_mixture(seed=0, size_a=7, size_b=5):
    def draw(index, key):
        return make_document(4 + key % 5, 10_000 + 100 * index)

    sources = {
        "a": ListSource([make_document(3 + i, 100 * i) for i in range(size_a)]),
        "b": FunctionSource(draw, size_b, max_length=8),
    }
    return Mixture(sources, {"a": 3, "b": 2}, seed)


def fingerprints(batch):
    """Every document of a batch as (first id, length, source), sorted: what a global batch holds whatever its rows."""
    documents = []
    for r in range(len(batch.input_ids)):
        for segment in range(1, int(batch.segment_ids[r].max()) + 1):
            where = batch.segment_ids[r] == segment
            documents.append((int(batch.input_ids[r][where][0]), int(where.sum()), int(batch.source_ids[r][where][0])))
    return sorted(documents)


def test_steps_hold_fixed_counts_and_epochs_hold_everything_once():
    mixture = make_mixture()
    references = [reference for step in range(7) for reference in mixture.references(step)]
    for step in range(7):
        assert [reference.source for reference in mixture.references(step)] == ["a"] * 3 + ["b"] * 2
    of_a = [reference.number for reference in references if reference.source == "a"]
    assert all(sorted(of_a[i : i + 7]) == list(range(7)) for i in range(0, 21, 7))
    keys = [reference.key for reference in references]
    assert len(set(keys)) == len(keys)


def test_steps_are_a_pure_function_of_seed_and_step():
    assert make_mixture().references(11) == make_mixture().references(11)
    assert make_mixture().references(11) != make_mixture(seed=1).references(11)
    assert make_mixture().references(11) != make_mixture().references(12)


def test_adding_a_source_leaves_the_orders_of_the_others():
    mixture = make_mixture()
    alone = Mixture({"a": mixture.sources["a"]}, {"a": 3}, seed=0)
    assert [r for r in mixture.references(4) if r.source == "a"] == alone.references(4)


def test_wrong_mixtures_are_refused_with_every_reason():
    with pytest.raises(ValueError, match=r"unknown sources \['c'\].*'a' is -1"):
        Mixture({"a": ListSource([make_document(3, 0)])}, {"a": -1, "c": 2})


def test_resuming_gives_the_batches_of_an_unbroken_run():
    straight = PackedLoader(make_mixture(), 24, steps_per_epoch=10)
    batches = list(straight) + list(straight)
    assert straight.step == 20 and len(batches) == 20
    first = PackedLoader(make_mixture(), 24, steps_per_epoch=10)
    iterator = iter(first)
    for _ in range(6):
        next(iterator)
    second = PackedLoader(make_mixture(), 24, steps_per_epoch=10)
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert len(rest) == 4
    for ours, theirs in zip(rest + list(second), batches[6:], strict=False):
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def test_state_of_another_seed_or_mixture_is_refused():
    state = PackedLoader(make_mixture(), 24).state_dict()
    with pytest.raises(ValueError, match="same settings"):
        PackedLoader(make_mixture(seed=3), 24).load_state_dict(state)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_ranks_sees_the_same_global_batch(world_size):
    whole = list(PackedLoader(make_mixture(), 24, steps_per_epoch=5, rank=0, world_size=1))
    ranks = [
        list(PackedLoader(make_mixture(), 24, steps_per_epoch=5, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    for step, batch in enumerate(whole):
        parts = [batches[step] for batches in ranks]
        assert len({part.input_ids.shape for part in parts}) == 1
        assert sorted(sum((fingerprints(part) for part in parts), [])) == fingerprints(batch)


def test_workers_change_nothing():
    plain = list(PackedLoader(make_mixture(), 24, steps_per_epoch=4))
    loader = PackedLoader(make_mixture(), 24, steps_per_epoch=4, num_workers=2)
    workers = list(loader)
    assert loader.step == 4 and len(workers) == 4
    for ours, theirs in zip(workers, plain, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def test_rows_too_short_for_a_source_are_refused_at_once():
    with pytest.raises(ValueError, match=r"'a' has documents of up to 9 tokens.*'b'.*up to 8 tokens"):
        PackedLoader(make_mixture(), 7)
    silent = Mixture({"x": FunctionSource(lambda index, key: make_document(9, 0), 2)}, {"x": 1})
    with pytest.raises(ValueError, match="step 0"):
        next(iter(PackedLoader(silent, 7)))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_document_once(world_size):
    sources = make_mixture().sources
    loaders = [
        EvaluationLoader(sources, 24, documents_per_batch=5, rank=r, world_size=world_size) for r in range(world_size)
    ]
    batches = [list(loader) for loader in loaders]
    assert {len(b) for b in batches} == {len(loaders[0])}
    seen = [document for rank in batches for batch in rank for document in fingerprints(batch)]
    assert sorted(first for first, _, source in seen if source == 0) == [100 * i for i in range(7)]
    assert len(seen) == 12
