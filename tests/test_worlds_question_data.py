"""Questions of worlds as training conversations: the ids that generation asks with, and loss on the words of named roles."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from emu import Emu
from emu.documents import Video
from emu.generation import Engine
from emu.pipeline import GenerationDefaults
from emu.trained import Trained
from emu.worlds import TRAIN, standard_worlds
from emu.worlds.patch_tokenizer import fit_tokenizer
from emu.worlds.question_data import QuestionData, question_source
from emu.worlds.questions import WorldQuestions
from emu.worlds.scene_documents import WorldDocuments
from tests.test_evaluation_models import tiny_model


@pytest.fixture(scope="module")
def emu():
    """An untrained model over the worlds' own codes."""
    tokenizer = fit_tokenizer(list(standard_worlds().values()))
    return Emu(tiny_model(tokenizer.vocabulary), tokenizer, GenerationDefaults(size=(32, 32)))


@pytest.mark.parametrize("name", ["one", "moving"])
def test_a_conversation_is_what_generation_asks_and_the_answer_has_the_loss(emu, name, monkeypatch):
    world, tokenizer = standard_worlds()[name], emu.tokenizer
    source, key = question_source(WorldDocuments(world, tokenizer)), 12
    document = source.document(0, key)
    asked = WorldQuestions(world).draw(key, 1, TRAIN)
    pixels = world.render(asked.rows, 32)[0]
    shown = Image.fromarray(pixels) if name == "one" else Video(pixels, 4)

    prompts = []
    spied = Engine.continue_texts
    monkeypatch.setattr(
        Engine,
        "continue_texts",
        lambda self, given, *rest, **options: prompts.extend(given) or spied(self, given, *rest, **options),
    )
    emu.generate_text([[shown, asked.texts[0]]], max_new_tokens=1)
    answer = torch.tensor([*tokenizer.layout.encode_text(asked.answers[0]), tokenizer.vocabulary.control("eos")])
    assert torch.equal(document.ids, torch.cat([prompts[0], answer]))
    assert document.weights.tolist() == [0.0] * len(prompts[0]) + [1.0] * len(answer)
    assert all(len(source.document(0, other)) <= source.max_length for other in range(50))


def test_loss_falls_on_the_roles_that_are_named(emu):
    documents = WorldDocuments(standard_worlds()["one"], emu.tokenizer)
    learned = {role: question_source(documents, role).document(0, 3) for role in ("assistant", "user", "all")}
    assert learned["all"].weights.sum() > learned["user"].weights.sum() > 0
    assert torch.equal(learned["all"].ids, learned["assistant"].ids)


def test_the_exported_model_says_what_it_answers(emu, tmp_path):
    started, exported = tmp_path / "start", tmp_path / "end"
    emu.save_pretrained(started)
    (started / "worlds.json").write_text('{"worlds": {"one": "x"}}')
    data = QuestionData(str(started), {"one/questions": 2, "two/text-to-image": 1})
    exported.mkdir()
    data.save_pretrained(exported)
    assert (exported / "worlds.json").read_text().count("questions") == 1 and (exported / "emu.json").is_file()
    asked_of_pictures = QuestionData(str(started), {"one/questions": 2, "moving/text-to-video": 1}).trained(
        Trained((), context=1)
    )
    assert asked_of_pictures.tasks == ("image_to_text",)
    wrong = QuestionData(str(started), {"three/questions": 2, "one/answers": 1}, loss_on="nobody")
    assert "'three/questions'" in wrong.source_problems()[0]
    problems = " ".join(wrong.problems(None))
    assert "'three/questions'" in problems and "'one/answers'" in problems and "loss_on is 'nobody'" in problems
