"""Steps of a constant number of rows: the same for any workers, ranks and accumulation, and resumed by one integer."""

import pickle
import time

import numpy as np
import pytest
import torch
import yaml

from emu.data import ListSource, Mixture, PackedLoader
from emu.data.block_mixture import BlockMixture
from emu.data.row_loader import PlansAhead, RowLoader
from emu.data.sharded import ShardData
from emu.data.shards import TokenizedDocument, write_manifest, write_shard
from tests.row_toys import Lengths, draw_lengths
from tests.shards_toys import make_album, write
from tests.training_toys import VOCABULARY, make_document, run, write_recipe
from tests.training_toys import same as same_run


def make_loader(rows=6, steps_per_epoch=5, weights=None, seed=0, **options):
    mixture = BlockMixture({"a": Lengths(draw_lengths(300)), "b": Lengths([7, 9])}, 256, rows, weights, seed)
    return RowLoader(mixture, rows, steps_per_epoch=steps_per_epoch, **options)


def same(ours, theirs):
    return all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def test_every_step_has_equally_many_rows_of_whole_documents():
    loader = make_loader()
    for batch in loader:
        assert batch.input_ids.shape == (6, 256) and set(batch.source_ids.unique().tolist()) <= {-1, 0, 1}
        for row in range(6):
            for segment in range(1, int(batch.segment_ids[row].max()) + 1):
                where = batch.segment_ids[row] == segment
                number, source = int(batch.input_ids[row][where][0]), int(batch.source_ids[row][where][0])
                lengths = list(loader.mixture.sources.values())[source].lengths()
                assert int(where.sum()) == lengths[number]


def border(loader):
    """The batch that reaches from the first block into the second."""
    return (len(loader.mixture.plan(0).starts) - 1) // loader.rows_per_batch


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_ranks_sees_the_rows_of_one(world_size):
    whole = make_loader().batches()
    ranks = [make_loader(rank=rank, world_size=world_size).batches() for rank in range(world_size)]
    for step in (0, 1, border(make_loader()), border(make_loader()) + 1):
        parts = [rank[step] for rank in ranks]
        assert len({part.input_ids.shape for part in parts}) == 1
        for row in range(6):
            ours = [field[row // world_size] for field in parts[row % world_size]]
            assert same(ours, [field[row] for field in whole[step]])
        if 6 % world_size:
            assert not parts[-1].segment_ids[-1].any(), "what is missing to a multiple is empty rows"


def test_workers_and_resuming_anywhere_change_nothing():
    straight = make_loader(steps_per_epoch=12)
    first = straight.step = border(straight) - 4  # so that steps reach over a block's border
    first -= first % 12
    straight.step = first
    batches = list(straight)
    for taken in (0, 1, 5, 11):
        interrupted = make_loader(steps_per_epoch=12)
        interrupted.step = first
        iterator = iter(interrupted)
        for _ in range(taken):
            next(iterator)
        for workers in (0, 2):
            again = make_loader(steps_per_epoch=12, num_workers=workers)
            again.load_state_dict(interrupted.state_dict())
            assert again.step == first + taken
            rest = list(again)
            assert len(rest) == 12 - taken and all(map(same, rest, batches[taken:]))
    assert straight.state_dict()["step"] == first + 12


@pytest.mark.parametrize("weights", [None, [{"a": 1.0}, {"from_step": 7, "a": 1.0, "b": 1.0}]])
def test_accumulation_divides_the_rows_of_a_step(weights):
    """A step of six rows is that of two batches of three, also where weights change at an optimizer step."""
    sources = {"a": Lengths(draw_lengths(300)), "b": Lengths([7, 9])}
    one = RowLoader(BlockMixture(sources, 256, 6, weights), 6, steps_per_epoch=9)
    two = RowLoader(BlockMixture(sources, 256, 6, weights), 3, steps_per_epoch=9, accumulation=2)
    halves = list(two)
    for number, batch in enumerate(one):
        ours = zip(halves[2 * number], halves[2 * number + 1], strict=True)
        assert same([torch.cat(pair) for pair in ours], batch)
    assert two.state_dict()["step"] == 18


def test_a_position_in_other_rows_is_refused():
    state = make_loader().state_dict()
    make_loader().load_state_dict(state)
    for other in (make_loader(rows=7), make_loader(seed=1), make_loader(weights={"a": 1.0})):
        with pytest.raises(ValueError, match="position is one in other data"):
            other.load_state_dict(state)
    documents = Mixture({"a": ListSource([make_document(5, 0)])}, {"a": 1})
    with pytest.raises(ValueError, match="rows_per_step was None and is 6"):
        make_loader().load_state_dict(PackedLoader(documents, 256).state_dict())


def test_the_next_block_is_planned_while_this_one_is_used():
    calls = []
    plans = PlansAhead(lambda block: calls.append(block) or block)
    assert plans(4) == 4
    deadline = time.monotonic() + 10
    while calls != [4, 5] and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [plans(block) for block in (4, 5, 4, 5)] == [4, 5, 4, 5] and calls.count(4) == calls.count(5) == 1
    mixture = BlockMixture({"a": Lengths(draw_lengths(300))}, 256, 6)
    copy = pickle.loads(pickle.dumps(PlansAhead(mixture.plan)))
    assert np.array_equal(copy(1).numbers, mixture.plan(1).numbers)


def shard_data(tmp_path, **options):
    folder = str(write(tmp_path / "shards", make_album()))
    return ShardData({"mine": folder}, row_length=64, **{"rows_per_step": 4, **options})


def test_shards_are_trained_on_in_rows_of_a_constant_number(tmp_path, capsys):
    data = shard_data(tmp_path, caption_dropout=0.5, weights={"mine": 1.0})
    assert data.problems(None) == data.source_problems() == [] and data.source_names == ("mine",)
    loader = data.train_dataloader()
    batches = iter(loader)
    for _ in range(3):
        batch = next(batches)
        assert batch.input_ids.shape == (4, 64) and (batch.segment_ids > 0).float().mean() > 0.8
    data.tell_row_use()
    said = capsys.readouterr().err
    assert "16,384 documents are packed into" in said and "of the documents are left out of their epoch" in said
    with pytest.raises(ValueError, match=r"sources\.mine\.caption_dropout"):
        shard_data(tmp_path, caption_dropout=0.1).train_dataloader().load_state_dict(loader.state_dict())


def test_lengths_of_shards_are_those_of_the_documents(tmp_path):
    for long_documents in ("drop", "cut"):
        data = shard_data(tmp_path, caption_dropout=0.5, long_documents=long_documents)
        source = data.training_sources()["mine"]
        numbers = np.arange(len(source)).repeat(40)
        keys = np.arange(len(numbers))
        lengths = source.token_lengths(numbers, keys)
        pairs = zip(numbers.tolist(), keys.tolist(), strict=True)
        assert lengths.tolist() == [len(source.document(number, key)) for number, key in pairs]
        assert abs(lengths.mean() / source.mean_length - 1) < 0.05


def test_damaged_lengths_are_one_of_the_problems(tmp_path):
    data = shard_data(tmp_path)
    assert repr(data) == str(data) == "ShardData(4 rows of 64 a batch, seed 0)"
    path = tmp_path / "shards" / "shard-00000.offsets.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    assert any("shard-00000.offsets.npy is damaged" in problem for problem in data.source_problems())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"documents_per_step": {"mine": 2}}, "data.rows_per_step and documents_per_step are both given"),
        ({"rows_per_step": None}, "data.rows_per_step is missing"),
        ({"rows_per_step": 0}, "rows_per_step is 0; expected 1 or more"),
        ({"weights": {"yours": 1.0}}, r"weights names the unknown sources \['yours'\]"),
        ({"documents_per_step": {"mine": 2}, "rows_per_step": None, "weights": {"mine": 1.0}}, "go with rows_per_step"),
    ],
)
def test_numbers_that_do_not_agree_are_told_before_work(tmp_path, options, message):
    data = shard_data(tmp_path, **options)
    (problem,) = data.problems(None)
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)
    assert data.source_problems() == []


@pytest.mark.slow
def test_a_run_of_constant_steps_goes_on_where_it_stopped(tmp_path):
    documents = [TokenizedDocument(make_document(5 + number % 4, 0)) for number in range(20)]
    write_shard(tmp_path / "shards", 0, documents, VOCABULARY, {})
    write_manifest(tmp_path / "shards", 1, VOCABULARY, {"vocabulary": VOCABULARY.fingerprint})
    recipe = write_recipe(tmp_path)
    table = yaml.safe_load(recipe.read_text())
    weights = [{"mine": 1.0}, {"from_step": 2, "mine": 3.0}]
    options = {"sources": {"mine": str(tmp_path / "shards")}, "rows_per_step": 3, "row_length": 32, "weights": weights}
    table["data"] = {"class_path": "emu.data.sharded.ShardData", "init_args": options}
    recipe.write_text(yaml.safe_dump(table))
    words = ("--export", "null", "--trainer.max_steps")
    whole = run(recipe, *words, 4, "--trainer.default_root_dir", tmp_path / "whole")
    run(recipe, *words, 2)
    with pytest.raises(ValueError, match=r"data\.init_args\.rows_per_step was 3"):
        run(recipe, *words, 4, "--ckpt_path", "last", "--data.rows_per_step", 4)
    again = run(recipe, *words, 4, "--ckpt_path", "last")
    assert same_run(again.model.state_dict(), whole.model.state_dict())
