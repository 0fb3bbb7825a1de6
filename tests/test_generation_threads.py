"""A step's threads follow its work, whoever calls; the caller's number comes back."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

import emu.generation.engine as engine_module
from emu import Emu
from emu.generation.threads import WORK_OF_A_THREAD, threads_for, threads_of

CPU = torch.device("cpu")


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_threads_follow_the_work_and_never_pass_what_is_there():
    assert [threads_of(work * WORK_OF_A_THREAD, 4) for work in (0, 1, 2, 3, 4, 100)] == [1, 1, 2, 3, 4, 4]
    assert threads_of(WORK_OF_A_THREAD - 1, 1) == threads_of(100 * WORK_OF_A_THREAD, 1) == 1


def test_the_callers_number_comes_back_also_after_an_error(four_threads):
    with threads_for(1, CPU):
        assert torch.get_num_threads() == 1
        with threads_for(10**12, CPU):  # what is inside cannot take more than what is outside
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    with pytest.raises(KeyError), threads_for(2 * WORK_OF_A_THREAD, CPU):
        assert torch.get_num_threads() == 2
        raise KeyError
    assert torch.get_num_threads() == 4
    with threads_for(1, torch.device("meta")):
        assert torch.get_num_threads() == 4


@pytest.fixture
def seen(monkeypatch, tiny_emu):
    """The number of threads at every pass of the transformer and of the vision tokenizer."""
    found = []

    def watch(owner, name):
        original = getattr(owner, name)

        def watched(*args, **options):
            found.append(torch.get_num_threads())
            return original(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(tiny_emu.model, "forward_tokens")
    watch(tiny_emu.tokenizer.vision, "decode")
    watch(tiny_emu.tokenizer.vision, "encode")
    return found


PICTURE = Image.fromarray(np.full((8, 8, 3), 100, np.uint8))
JOBS = {
    "pictures": lambda emu: emu.generate_images("a ball"),
    "clips": lambda emu: emu.generate_videos("a ball", first_frames=PICTURE),
    "text": lambda emu: emu.generate_text([[PICTURE, "a"]], max_new_tokens=2),
    "documents": lambda emu: list(emu.generate(["a", PICTURE], max_new_tokens=4)),
}


@pytest.mark.parametrize("job", list(JOBS))
def test_a_small_model_works_on_the_thread_that_calls(job, tiny_emu, seen, four_threads):
    JOBS[job](tiny_emu)
    assert seen and set(seen) == {1}
    assert torch.get_num_threads() == 4


def test_a_document_that_waits_for_its_reader_leaves_the_threads_alone(tiny_emu, four_threads):
    pieces = tiny_emu.generate("a ball", seed=3, max_new_tokens=20)
    next(pieces)
    assert torch.get_num_threads() == 4


def test_large_products_take_the_threads_that_there_are(tiny_emu, seen, four_threads, monkeypatch):
    monkeypatch.setattr(engine_module.Engine, "_work", lambda self, tokens: 3 * WORK_OF_A_THREAD)
    tiny_emu._engine(None).generate_text([tiny_emu.tokenizer.question(["a"])], max_new_tokens=2)
    assert set(seen) == {3}


def test_work_grows_with_rows_and_in_deterministic_mode_not_at_all(tiny_emu):
    plain, fixed = (Emu(tiny_emu.model, tiny_emu.tokenizer)._engine(wanted) for wanted in (False, True))
    assert plain._work(64) == 8 * plain._work(8) == 8 * plain._work(1)  # few rows wait for the weights
    assert fixed._work(64) == fixed._work(1)


def test_results_do_not_depend_on_the_threads_that_there_are(tiny_emu, four_threads):
    many = tiny_emu.generate_images("a ball", size=(16, 16), deterministic=True)[0]
    torch.set_num_threads(1)
    one = tiny_emu.generate_images("a ball", size=(16, 16), deterministic=True)[0]
    assert torch.equal(many.codes, one.codes) and many.image.tobytes() == one.image.tobytes()


def test_threads_of_python_that_work_at_the_same_time_keep_their_own_number(four_threads):
    inside, ends, found = threading.Barrier(3), threading.Event(), {}

    def work(units, own):
        torch.get_num_threads()
        torch.set_num_threads(own)
        with threads_for(units * WORK_OF_A_THREAD, CPU):
            inside.wait(30)
            found[own] = torch.get_num_threads()
            ends.wait(30)
        found[own] = (found[own], torch.get_num_threads())

    assert torch.get_num_threads() == 4
    workers = [threading.Thread(target=work, args=pair) for pair in ((1, 2), (2, 3))]
    for worker in workers:
        worker.start()
    inside.wait(30)
    assert torch.get_num_threads() == 4
    ends.set()
    for worker in workers:
        worker.join()
    assert found == {2: (1, 2), 3: (2, 3)}
