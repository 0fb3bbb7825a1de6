"""Questions to models: the ids that are asked, what counts as right, files of questions, and what is refused."""

import json
from argparse import ArgumentParser

import numpy as np
import pytest
import torch
from PIL import Image

from emu import Emu
from emu.data.tokenizing.document_reader import DocumentReader
from emu.evaluation.question_sets import ask, file_questions, world_questions
from emu.evaluation.suites import SUITES
from emu.evaluation.suites.base import Unsuited
from emu.evaluation.suites.vqa import VqaSubject, VqaSuite, check_fingerprints
from emu.pipeline import GenerationDefaults
from emu.worlds import COMBINATIONS, HELD_OUT, TRAIN, moving, shapes
from emu.worlds.patch_tokenizer import fit_tokenizer
from emu.worlds.questions import WorldQuestions
from tests.test_evaluation_models import tiny_model

WORLDS = {"one": shapes(1), "moving": moving(4)}


@pytest.fixture(scope="module")
def emu():
    """An untrained model over the worlds' own codes."""
    tokenizer = fit_tokenizer(list(WORLDS.values()))
    return Emu(tiny_model(tokenizer.vocabulary), tokenizer, GenerationDefaults(size=(32, 32)))


def request(model, *words):
    parser = ArgumentParser()
    parser.add_argument("model")
    VqaSuite().add_options(parser)
    return parser.parse_args([str(model), *words])


class Answering:
    """A model that knows the answers to some of the questions, and counts how it was asked."""

    def __init__(self, emu, known):
        self.tokenizer, self.model, self.known, self.asked = emu.tokenizer, emu.model, known, 0

    def generate_text(self, documents, **options):
        self.asked += len(documents)
        return [f" {self.known[i]} " if i in self.known else "nonsense" for i in range(len(documents))]


@pytest.mark.parametrize("name", WORLDS)
def test_ids_of_a_training_conversation_equal_those_that_generation_asks_with(emu, name, tmp_path):
    world = WORLDS[name]
    asked = WorldQuestions(world).draw(4, 6)
    frames = world.render(asked.rows, 32)
    items = []
    for i, pixels in enumerate(frames):
        shown = [pixels] if name != "moving" else list(pixels)
        files = [f"{i}-{step}.png" for step in range(len(shown))]
        for file, picture in zip(files, shown, strict=True):
            Image.fromarray(picture).save(tmp_path / file)
        items.append({"image": files[0]} if name != "moving" else {"frames": files, "fps": 4})
    reader = DocumentReader(emu.tokenizer, tmp_path)
    prompts = emu.prepare_texts(world_questions(name, world, 32, 6, 4, TRAIN).documents).prompts
    for line, answer, prompt in zip(asked.lines(items), asked.answers, prompts, strict=True):
        document = reader.read(line).document
        assert torch.equal(document.ids[: len(prompt)], prompt)
        assert not document.weights[: len(prompt)].any() and document.weights[len(prompt) :].all()
        assert emu.tokenizer.layout.decode_text(document.ids[len(prompt) : -1].tolist()).strip() == answer


def test_an_answer_is_right_where_it_is_the_very_word(emu):
    questions = world_questions("one", shapes(1), 32, 40, 0)
    model = Answering(emu, {i: answer for i, answer in enumerate(questions.answers) if i % 2})
    right, said = ask(model, questions)
    assert right.tolist() == [bool(i % 2) for i in range(40)] and said[0] == "nonsense" and model.asked == 40
    partly = Answering(emu, {i: answer + " indeed" for i, answer in enumerate(questions.answers)})
    assert not ask(partly, questions)[0].any()


def test_the_report_has_every_kind_its_interval_and_what_chance_gives(emu):
    sets = [world_questions("moving", moving(4), 32, 60, 0, split) for split in (HELD_OUT, COMBINATIONS)]
    lines = []
    report = VqaSuite().run(VqaSubject(Answering(emu, dict(enumerate(sets[0].answers))), sets, 0), lines.append)
    assert report.figures["vqa/moving"] == 1 and report.figures["vqa/moving/bounces"] == 1 and report.exit_code == 0
    assert report.figures["vqa/moving/combinations"] < 0.7
    assert 0.2 < report.table["moving"]["chance"] < 0.5 and not report.table["moving"]["wrong"]
    assert {"question", "answer", "said"} == set(report.table["moving/combinations"]["wrong"][0])
    assert report.measures["vqa/moving"].interval.low > 0.9
    assert any("vqa/moving/direction: 1.000" in line for line in lines)


def test_a_model_answers_whatever_it_is_worth(emu):
    report = VqaSuite().run(VqaSubject(emu, [world_questions("moving", moving(), 32, 30, 0)], 0), lambda line: None)
    assert report.figures["vqa/moving"] < 0.5


def test_equal_questions_are_compared_item_by_item_and_others_are_not(emu):
    sets = [world_questions("one", shapes(1), 32, 60, 0)]
    whole = VqaSuite().run(VqaSubject(Answering(emu, dict(enumerate(sets[0].answers))), sets, 0), print)
    half = VqaSuite().run(VqaSubject(Answering(emu, dict(enumerate(sets[0].answers[:30]))), sets, 0), print)
    difference = whole.measures["vqa/one"].minus(half.measures["vqa/one"])
    assert difference.value == pytest.approx(0.5) and 0 < difference.low < difference.high < 1
    others = [world_questions("one", shapes(1), 32, 60, 1)]
    again = VqaSuite().run(VqaSubject(Answering(emu, {}), others, 1), print)
    assert whole.measures["vqa/one"].minus(again.measures["vqa/one"]) is None


def question(image, text="What is it?", answer="a cat"):
    return {
        "messages": [{"role": "user", "content": [{"image": image}, text]}, {"role": "assistant", "content": answer}]
    }


def test_broken_and_repeated_lines_of_a_file_are_counted_and_left_out(emu, tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "cat.png")
    talk = [{"role": role, "content": "hm"} for role in ("user", "assistant", "user", "assistant")]
    lines = [
        json.dumps(question("cat.png")),
        json.dumps(question("cat.png")),
        json.dumps(question("dog.png")),
        '{"messages": [',
        json.dumps({"items": ["a"]}),
        json.dumps({"messages": talk}),
        json.dumps(question("cat.png", "And now?", [{"image": "cat.png"}])),
        json.dumps(question("cat.png", "Really?", "yes")),
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(lines))
    found = file_questions(file, emu)
    assert list(found.answers) == ["a cat", "yes"] and [document[-1] for document in found.documents] == [
        "What is it?",
        "Really?",
    ]
    reasons = [(problem.place.number, problem.reason) for problem in found.problems]
    assert reasons[:3] == [(2, "duplicate"), (3, "missing file"), (4, "not JSON")]
    assert [number for number, _ in reasons] == [2, 3, 4, 5, 6, 7]
    said = []
    report = VqaSuite().run(VqaSubject(Answering(emu, {0: "a cat"}), [found], 0), said.append)
    assert report.exit_code == 1 and report.figures["vqa/mine"] == 0.5
    assert "left out 1 lines of mine: duplicate" in said
    file.write_text("{]\n")
    with pytest.raises(ValueError, match="holds no question that can be asked; mine.jsonl line 1: not JSON"):
        file_questions(file, emu)


def test_what_cannot_be_asked_is_refused_before_any_work(emu, tmp_path):
    emu.save_pretrained(tmp_path / "model")
    suite, folder = SUITES["vqa"], tmp_path / "model"
    with pytest.raises(Unsuited, match="not trained to answer questions.*--worlds one,two,moving"):
        suite.prepare(request(folder))
    with pytest.raises(ValueError, match="world 'three'; expected some of one, two, moving"):
        suite.prepare(request(folder, "--worlds", "one,three"))
    with pytest.raises(ValueError, match="10 questions are too few"):
        suite.prepare(request(folder, "--questions", "10"))
    with pytest.raises(ValueError, match="both given"):
        suite.prepare(request(folder, "--worlds", "one", "--questions-file", "some.jsonl"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        suite.prepare(request(folder, "--questions-file", str(tmp_path / "none.jsonl")))
    (folder / "worlds.json").write_text(json.dumps({"questions": ["moving"], "size": 32, "worlds": {"moving": "0123"}}))
    with pytest.raises(ValueError, match="trained on the world 'moving' of fingerprint 0123"):
        suite.prepare(request(folder))
    check_fingerprints("model", WORLDS, {"worlds": {"one": shapes(1).fingerprint()}})
    (folder / "worlds.json").write_text(json.dumps({"questions": ["moving"], "size": 32, "worlds": {}}))
    assert [one.name for one in suite.prepare(request(folder, "--questions", "30")).sets] == [
        "moving",
        "moving/combinations",
    ]
