"""How much memory drawing takes is known before it begins, decides how many are drawn at a time, and does not grow with their number."""

import subprocess
import sys

import pytest
import torch

from emu import Emu
from emu.generation import Engine
from emu.generation.linear import bytes_of
from emu.generation.sequence_memory import drawing_memory
from emu.model import StaticCache
from emu.pipeline import drawing_memory as memory_module
from emu.pipeline.drawing_memory import free_memory, memory_budget, shown_bytes

CPU = torch.device("cpu")
PROMPTS = ["a ball", "a red circle", "a", "b", "a ball"]
CLIPS = """
import sys
from emu import Emu
def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
emu = Emu.from_pretrained("digits", device="cpu")
captions = [f"a handwritten {name} moving left" for name in ("one", "two", "three", "four")] * 50
for number, clip in enumerate(emu.iter_videos(captions, seed=list(range(200)), batch_size=8), start=1):
    del clip
    if number in (50, 200):
        print(memory("VmHWM"))
"""


@pytest.fixture
def batches(monkeypatch):
    """How many blocks the engine drew at a time."""
    sizes = []
    generate = Engine.generate_grids

    def watched(self, prompts, *arguments, **options):
        sizes.append(len(prompts))
        return generate(self, prompts, *arguments, **options)

    monkeypatch.setattr(Engine, "generate_grids", watched)
    return sizes


def needed(emu, **changes):
    options = {"prompt": 20, "block": 30, "candidates": 16, "guided": True} | changes
    return drawing_memory(emu.model.config, emu.model.dtype, CPU, **options)


def test_the_cache_is_most_of_it_and_counted_exactly(tiny_emu):
    config = tiny_emu.model.config
    cache = StaticCache(config, 2, 20 + 1004, dtype=torch.float32, device="cpu")  # whole blocks of 64 slots
    held = cache._keys.nbytes + cache._values.nbytes
    longer = StaticCache(config, 2, 20 + 3052, dtype=torch.float32, device="cpu")
    assert needed(tiny_emu, block=3051) - needed(tiny_emu, block=1003) == longer._keys.nbytes * 2 - held
    assert held < needed(tiny_emu, block=1003) < 1.5 * held


def test_a_cache_that_is_refilled_takes_what_it_keeps_and_what_it_grows_by(tiny_emu):
    config = tiny_emu.model.config
    cache, most = StaticCache(config, 0, 0, dtype=torch.float32, device="cpu"), [0]
    empty = cache._empty

    def noted(*sizes):
        new = empty(*sizes)
        most.append(new.nbytes + sum(part.nbytes for part in (cache._keys, cache._values)))
        return new

    cache._empty = noted
    for rows, capacity in ((2, 256), (5, 256), (5, 320), (2, 768), (6, 256), (1, 1536), (6, 256)):
        cache.keep(range(min(rows, cache.rows)))
        cache.reserve(rows, capacity)
        cache.extend([0] * (rows - cache.rows))
    slot = 2 * config.num_hidden_layers * cache._keys[0, 0, :, 0].nbytes
    assert 1536 * slot < max(most) <= 1.25 * 1.5 * 1600 * slot
    assert needed(tiny_emu, guided=False) < needed(tiny_emu) < needed(tiny_emu, window=16)


def test_fewer_are_drawn_at_a_time_where_memory_is_short_and_they_are_the_same(tiny_emu, batches):
    options = {"size": (8, 12), "seed": [1, 2, 3, 4, 1], "deterministic": True}
    expected = [result.codes.tolist() for result in tiny_emu.generate_images(PROMPTS, **options)]
    assert batches == [5]
    batches.clear()
    found = tiny_emu.generate_images(PROMPTS, memory=2 * 10**5, **options)
    assert [result.codes.tolist() for result in found] == expected
    assert len(batches) > 1 and sum(batches) == 5


@pytest.mark.parametrize("failures", [1, 2])
def test_a_batch_that_is_too_large_is_halved_and_nothing_is_lost(tiny_emu, batches, monkeypatch, failures):
    options = {"seed": [1, 2, 3, 4, 1], "deterministic": True}
    expected = [result.codes.tolist() for result in tiny_emu.generate_images(PROMPTS, **options)]
    batches.clear()
    generate, left = Engine.generate_grids, [failures]

    def full(self, prompts, *arguments, **others):
        if left[0]:
            left[0] -= 1
            batches.append(-len(prompts))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, prompts, *arguments, **others)

    monkeypatch.setattr(Engine, "generate_grids", full)
    assert [result.codes.tolist() for result in tiny_emu.generate_images(PROMPTS, **options)] == expected
    assert batches == ([-5, 2, 2, 1] if failures == 1 else [-5, -2, 1, 1, 1, 1, 1])


def test_a_batch_is_halved_where_a_cpu_has_no_memory_for_it(tiny_emu, batches, monkeypatch):
    options = {"seed": [1, 2, 3, 4, 1], "deterministic": True}
    expected = [result.codes.tolist() for result in tiny_emu.generate_images(PROMPTS, **options)]
    batches.clear()
    forward = tiny_emu.model.forward_tokens

    def full(ids, *arguments, **others):
        return torch.empty(1 << 50) if len(ids) > 4 else forward(ids, *arguments, **others)  # two rows of each

    monkeypatch.setattr(tiny_emu.model, "forward_tokens", full)
    assert [result.codes.tolist() for result in tiny_emu.generate_images(PROMPTS, **options)] == expected
    assert batches == [5, 2, 2, 1]


def test_a_single_one_that_does_not_fit_is_an_error(tiny_emu, batches, monkeypatch):
    with pytest.raises(ValueError, match=r"one image of 2x2 codes takes .* may be used; ask for a smaller size"):
        tiny_emu.iter_images("a", memory=1000)
    with pytest.raises(ValueError, match="one video of 2x2x2 codes"):
        tiny_emu.iter_videos("a", memory="2 kB")
    assert batches == []

    def full(self, *arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "generate_grids", full)
    with pytest.raises(torch.OutOfMemoryError):
        tiny_emu.generate_images(["a", "b"])


@pytest.mark.parametrize(
    ("memory", "expected"), [(5, 5), ("7", 7), ("2 KB", 2000), ("1.5GiB", 3 << 29), ("8gb", 8 * 10**9)]
)
def test_a_budget_is_bytes_or_text(memory, expected):
    assert memory_budget(memory, CPU) == expected


@pytest.mark.parametrize("memory", ["much", "8 parsecs", "-1", -1, 0, 1.5, True, []])
def test_another_budget_is_refused(tiny_emu, memory):
    with pytest.raises((TypeError, ValueError), match="memory is"):
        tiny_emu.generate_images("a", memory=memory)


def test_what_is_free_is_what_the_machine_and_the_limit_of_the_process_leave(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:  3000 kB\n")
    monkeypatch.setattr(memory_module, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory_module, "_CGROUP", tmp_path)
    assert free_memory(CPU) == 3000 * 1024
    assert memory_budget(None, CPU) == int(0.8 * 3000 * 1024)
    for limit, free in (("max", 3000 * 1024), ("1000000", 700_000)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("500000\n")
        (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
        assert free_memory(CPU) == free
    monkeypatch.setattr(memory_module, "_MEMINFO", tmp_path / "nowhere")
    monkeypatch.setattr(memory_module, "_CGROUP", tmp_path / "nowhere")
    assert free_memory(CPU) is None and memory_budget(None, CPU) is None


def test_a_batch_leaves_room_for_the_copies_of_weights_that_it_makes(tiny_emu, monkeypatch):
    monkeypatch.setattr(memory_module, "free_memory", lambda device: 10**8)
    emu = Emu(tiny_emu.model, tiny_emu.tokenizer, tiny_emu.defaults, deterministic=True)
    assert emu.batcher().memory == int(0.8 * 10**8) - bytes_of(emu.model)
    assert emu.batcher(memory=10**7).memory == 10**7


def test_bytes_are_shown_with_a_unit():
    assert [shown_bytes(count) for count in (12, 1200, 3.4e6, 5.1e9)] == ["12 bytes", "1.2 kB", "3.4 MB", "5.1 GB"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_clips():
    out = subprocess.run([sys.executable, "-c", CLIPS], capture_output=True, text=True, check=True).stdout
    early, late = map(int, out.split())
    print(f"peak after 50 clips {early / 1e6:.1f} MB, after 200 {late / 1e6:.1f} MB")
    assert late < 1.01 * early
