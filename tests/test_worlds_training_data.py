"""Documents of worlds as training sees them: drawn from keys, prompts dropped, settings checked."""

import numpy as np

from emu.worlds import shapes
from emu.worlds.patch_tokenizer import fit_tokenizer
from emu.worlds.scene_documents import WorldDocuments
from emu.worlds.training_data import WorldsData, WorldSource


def test_training_documents_are_a_pure_function_of_their_key():
    data = WorldsData({"one/text-to-image": 2, "moving/text-to-video": 1}, seed=3)
    sources = data.training_sources()
    assert set(data.source_names) == {"one/text-to-image", "moving/text-to-video"}
    for name in ("one/text-to-image", "two/image-to-text", "moving/continuation"):
        source = sources[name]
        some = [source.document(0, key) for key in range(20)]
        assert all(len(document) <= source.max_length <= data.row_length for document in some)
        assert all(
            (one.ids == two.ids).all()
            for one, two in zip(some, [source.document(5, key) for key in range(20)], strict=True)
        )
        assert len({tuple(document.ids.tolist()) for document in some}) > 10
    (batch, again) = (next(iter(data.train_dataloader())) for _ in range(2))
    assert (batch.input_ids == again.input_ids).all()


def test_prompts_are_dropped_as_often_as_asked():
    world = shapes(1)
    documents = WorldDocuments(world, fit_tokenizer([world, shapes(2)]))
    source = WorldSource(documents, "text-to-image", prompt_dropout=0.3)
    lengths = np.array([len(source.document(0, key)) for key in range(300)])
    assert 0.2 < (lengths == lengths.min()).mean() < 0.4


def test_settings_that_cannot_work_are_listed():
    found = WorldsData({"one/text-to-image": 1}, size=40, prompt_dropout=1.0).problems(None)
    assert any("multiple of 32" in line for line in found) and any("prompt_dropout" in line for line in found)
