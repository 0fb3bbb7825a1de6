"""Requests from documents to suites: what is written, what is read back, and which answers a suite believes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from emu.evaluation.answers import Answers, adjusted, ask, free_tests, judged, shares
from emu.evaluation.models import ModelSample
from emu.evaluation.statistics import holm
from emu.evaluation.suites import SUITES
from emu.evaluation.suites.requests import AskedTask, EditsSuite, check_questions, overwritten
from emu.evaluation.suites.worlds import SuiteOptions, WorldModel
from emu.generation import Engine
from emu.worlds import COMBINATIONS, MORE_WORLDS, FillWorld
from emu.worlds.examples import BY_EXAMPLE, WITHOUT
from emu.worlds.scene_documents import WorldDocuments
from emu.worlds.training_data import WorldsData
from tests.test_evaluation_models import tiny_model

RECIPES = Path(__file__).parents[1] / "recipes"
TASKS = [(name, task) for name, make in MORE_WORLDS.items() for task in make().tasks]


def recipe(name):
    return yaml.safe_load((RECIPES / name).read_text())


@pytest.fixture(scope="module")
def data():
    return WorldsData(**recipe("shapes-edit.yaml")["data"]["init_args"])


class Noted(WorldDocuments):
    """Documents that note what was last asked, so that an engine without a model can answer it."""

    def prompts(self, task, given):
        self.asked = task, given
        return super().prompts(task, given)


class ExactEngine:
    """Answers drawn from the true law of each prompt."""

    def __init__(self):
        self.documents, self.rng = {}, np.random.default_rng(0)
        self.model = SimpleNamespace(device=torch.device("cpu"))

    def holding(self, documents, name):
        """Noted documents of a world that this engine answers."""
        self.documents[name] = Noted(documents.world, documents.tokenizer)
        return self.documents[name]

    def answers(self, documents):
        task, given = documents.asked
        table, world = documents.world.table(*_target_given(documents.world, task), full=True), documents.world
        drawn = []
        for prompt in given.tolist():
            targets, odds = table.outcomes(prompt)
            drawn.append(self.rng.choice(targets, p=odds))
        target = world.task(task).target
        return torch.stack([one.codes for one in documents.segments(target, np.array(drawn))])

    def generate_codes(self, prompts, negative_ids, grid, **options):
        (documents,) = [
            one for one in self.documents.values() if len(getattr(one, "asked", ((), ()))[1]) == len(prompts)
        ]
        found = self.answers(documents)
        del documents.asked
        return found

    def fill_codes(self, prompts, codes, hidden, **options):
        found = self.generate_codes(prompts, None, None)
        assert torch.equal(found[~hidden], codes[~hidden])
        return found


def _target_given(world, task):
    return world.task(task).target, world.task(task).given


def answered(documents, task, count, split="held_out"):
    engine = ExactEngine()
    return ask(ModelSample(engine, engine.holding(documents, "only")), task, count, 0, split)


def drawn_answers(world, task, count, lean=None):
    """Answers by number alone, drawn from the true law, or from one that makes the least value of an attribute three times as likely."""
    question, draws = world.task(task), world.draw(0, count)
    given = draws.values(question.given)
    targets, odds, owner = world.table(question.target, question.given).all_outcomes(given)
    if lean is not None:
        values = world.attribute_values(task, lean, targets, given[owner])
        least = np.full(count, values.max(initial=0))
        np.minimum.at(least, owner, values)
        odds = odds * np.where(values == least[owner], 3.0, 1.0)
    score = np.log(odds) + np.random.default_rng(0).gumbel(size=len(odds))  # the largest is drawn with these odds
    order = np.lexsort((score, owner))
    return Answers(
        world,
        task,
        0,
        draws,
        targets[order[np.searchsorted(owner, np.arange(count), side="right") - 1]],
        np.ones(count, bool),
        None,
    )


def test_the_recipe_trains_on_plain_tasks_as_shapes_does_and_its_rows_hold_the_longest_document(data):
    new, old = recipe("shapes-edit.yaml"), recipe("shapes.yaml")
    assert new["model"] == old["model"] and new["trainer"]["max_steps"] == old["trainer"]["max_steps"]
    counts, plain = (some["data"]["init_args"]["documents_per_step"] for some in (new, old))
    assert plain == {name: count for name, count in counts.items() if name in plain}
    assert data.problems(None) == [] and data.source_problems() == []
    assert max(data.longest_documents().values()) <= data.row_length
    assert {name.partition("/")[0] for name in counts} == {"one", "two", "moving", *MORE_WORLDS}


def test_a_model_of_the_recipe_says_what_it_was_trained_for(data):
    trained = data.trained()
    assert {"image_and_text_to_image", "image_to_image", "image_infill", "text_to_image", "video_continuation"} <= set(
        trained.tasks
    )
    assert trained.rates == (2, 4, 8) and trained.frames == (4,) and trained.context <= data.row_length


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_documents_parse_back_and_weigh_what_is_asked_for_alone(data, name, task):
    documents = data.documents[name]
    world, layout = documents.world, documents.tokenizer.layout
    question, draws = world.task(task), world.draw(3, 8)
    prompts = documents.prompts(task, draws.values(question.given))
    targets = documents.segments(question.target, draws.values(question.target))
    for i, document in enumerate(documents.documents(task, draws)):
        assert len(document) <= documents.max_length(task) <= data.row_length
        segments = layout.parse(document.ids)
        assert torch.equal(document.ids[: len(prompts[i])], prompts[i])
        assert set(document.weights.tolist()) <= {0.0, 1.0}
        weighed = int((document.weights > 0).sum())
        if question.target == "caption":
            assert layout.decode_text(document.ids[document.weights > 0][:-1].tolist()) == draws.captions[i]
            continue
        assert torch.equal(segments[-1].codes, targets[i].codes) and segments[-1].meta == targets[i].meta
        hidden = segments[-1].hidden
        given = len(documents.beginnings(draws.values("beginning"))[0].flatten()) if task == "continuation" else 0
        assert weighed == (targets[i].codes.numel() - given if hidden is None else int(hidden.sum()))


def test_requests_show_pictures_and_words_in_order(data):
    shown = {
        name: [
            getattr(segment, "modality", "text")
            for segment in data.tokenizer.layout.parse(documents.documents(task, documents.world.draw(0, 1))[0].ids)
        ]
        for name, task in TASKS
        if (documents := data.documents[name]) and task in ("edit", "fill", BY_EXAMPLE, WITHOUT)
        if task != WITHOUT
    }
    words_and_pictures = ["image", "text", "image"]
    assert shown["edit-one"] == shown["edit-two"] == words_and_pictures
    assert shown["examples"] == ["image"] * 4 and shown["fill-one"] == shown["fill-two"] == ["text", "image"]


@pytest.mark.parametrize(("name", "task"), [pair for pair in TASKS if pair[1] != "video-to-text"])
def test_answers_of_the_true_law_are_right_and_keep_what_had_to_stay(data, name, task):
    documents = data.documents[name]
    splits = ["held_out", *([COMBINATIONS] if documents.world.held_out.any() else [])]
    for split in splits:
        found = shares([answered(documents, task, 12, split=split)])
        assert all(share.value == 1 for share in found.values())
        assert ("kept" in found) == (name != "rates")


@pytest.mark.parametrize(
    ("name", "task", "attributes", "count"),
    [
        ("edit-one", "edit", ("place", "size"), 1000),
        ("edit-two", "edit", ("object",), 1000),
        ("examples", WITHOUT, ("edit",), 500),
        ("fill-one", "fill", ("place", "size"), 2000),
        ("fill-two", "fill", ("place",), 2000),
        ("rates", "text-to-video", ("start", "pace"), 900),
        ("rates", "continuation", ("ending",), 900),
    ],
)
def test_the_true_law_passes_the_tests_of_what_is_free_and_a_biased_one_fails(name, task, attributes, count):
    world = MORE_WORLDS[name]()
    exact, problems = free_tests([drawn_answers(world, task, count)], attributes)
    assert not problems and all(test["passes"] for test in adjusted(exact))
    for attribute in attributes:
        biased, problems = free_tests([drawn_answers(world, task, count, attribute)], [attribute])
        assert not problems and not adjusted(biased)[0]["passes"]


def test_one_changed_cell_is_counted_as_not_kept_and_not_right(data):
    documents = data.documents["edit-two"]
    world, draws = documents.world, documents.world.draw(0, 12)
    codes = documents.codes("picture", draws.values("edited"))
    stays = world.stays("edit", draws.values("request"))
    for place in range(16):
        spoilt = codes.clone()
        spoilt[:, place // 4, place % 4] = documents.codes("picture", draws.values("edited")).amax()
        found = judged(documents, "edit", 0, draws, spoilt)
        touched = stays[:, place] & (spoilt != codes).flatten(1).any(1).numpy()
        assert not found.right[touched].any() and not found.kept[touched].any()
        assert found.kept[~stays[:, place]].all()


def test_a_suite_runs_on_exact_answers(data, tmp_path):
    engine = ExactEngine()
    documents = {"edit-two": engine.holding(data.documents["edit-two"], "edit-two")}
    subject = WorldModel(tiny_model(data.vocabulary), engine, documents, SuiteOptions(documents=40, samples=200))
    lines = []
    report = EditsSuite().run(subject, lines.append)
    assert report.figures["right/edit-two/edit"] == report.figures["kept/edit-two/edit/combinations"] == 1
    assert report.figures["right/edit-two/edit/recolour"] == 1
    assert all(p > 1e-3 for name, p in report.figures.items() if name.startswith("p/")) and report.exit_code == 0
    assert report.figures["excess/edit-two/edit"] > 50  # an untrained model
    assert len(report.table["tests"]) == 3 and any("by Holm" in line for line in lines)
    assert report.write(tmp_path, "edits")


def test_whole_pictures_with_the_shown_cells_put_over_them_are_often_wrong(data):
    engine = ExactEngine()
    documents = {name: engine.holding(data.documents[name], name) for name in ("one", "fill-one")}
    subject = WorldModel(None, engine, documents, SuiteOptions())
    answers = ask(ModelSample(engine, documents["fill-one"]), "fill", 100, 0)
    assert isinstance(answers, Answers) and isinstance(answers.world, FillWorld)
    assert overwritten(answers, subject, "one", "fill-one").value < 0.5


def test_without_the_example_answers_are_guesses(data):
    found = drawn_answers(data.worlds["examples"], WITHOUT, 600)
    assert 0.08 < found.true.mean() < 0.18
    assert answered(data.documents["examples"], BY_EXAMPLE, 12).true.all()


def test_models_that_were_not_trained_on_requests_are_refused_by_the_name_of_the_recipe():
    with pytest.raises(ValueError, match="none of edit-one/edit.*emu fit --config shapes-edit"):
        check_questions([], EditsSuite.questions, None)


def test_too_few_samples_are_named_for_each_question(data):
    subject = WorldModel(None, None, data.documents, SuiteOptions(samples=200))
    with pytest.raises(ValueError, match="(?s)give more with --samples.*'place'"):
        check_questions([AskedTask("edit-one", "edit", ("place",))], EditsSuite.questions, subject)
    assert {"edits", "examples", "fills", "rates"} <= set(SUITES)


def test_p_values_are_adjusted_for_their_number():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(("name", "task"), [("edit-two", "edit"), ("fill-one", "fill"), ("rates", "text-to-video")])
def test_an_engine_answers_requests_of_every_kind(data, name, task):
    documents = data.documents[name]
    sample = ModelSample(Engine(tiny_model(data.vocabulary), documents.tokenizer.layout), documents)
    found = ask(sample, task, 3, 0)
    assert found.target.shape == (3,) and not found.right.all()
    if isinstance(documents.world, FillWorld):
        assert found.kept.all()  # whatever a model draws, what is shown is not drawn
