"""Training of vision tokenizers: it learns, resumes bit for bit, and keeps its hands off the codebook in evaluation."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig
from emu_tokenizers.pixels.metrics import CodeCounter, psnr
from emu_tokenizers.training.adversarial import (
    AdversarialOptions,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
)
from emu_tokenizers.training.losses import RandomFeatures, TokenizerLosses
from emu_tokenizers.training.tokenizer_module import OPTIMIZER, TokenizerModule

TINY = {"base_channels": 8, "codebook_size": 32, "latent_channels": 4, "embed_dim": 4}


class KeyedBatches:
    """Batches that are a function of their number, so that a resumed run sees what a straight one sees."""

    def __init__(self, length: int, start: int = 0) -> None:
        self.length, self.start = length, start

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        for index in range(self.start, self.length):
            generator = torch.Generator().manual_seed(index)
            level = torch.rand(4, 1, 1, 1, generator=generator) * 2 - 1
            images = (level + 0.1 * torch.randn(4, 3, 8, 8, generator=generator)).clamp(-1, 1)
            yield {"image": images, "video": images[:2, None].expand(-1, 6, -1, -1, -1).contiguous()}


def make_module(quantizer: str = "vq", **options) -> TokenizerModule:
    torch.manual_seed(0)
    levels = {"levels": (4, 4, 2)} if quantizer == "fsq" else None
    config = VisionTokenizerConfig.preset("small", **TINY, quantizer=quantizer, quantizer_options=levels)
    options = {"quantizer_warmup_steps": 3, "optimizer": replace(OPTIMIZER, warmup_steps=2), **options}
    return TokenizerModule(config, **options)


MUON = replace(OPTIMIZER, name="muon", matrix_lr=1e-2, warmup_steps=2)


QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "accelerator": "cpu",
}


class SaveAt(Callback):
    """Saves a checkpoint after some step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(
    module: TokenizerModule, steps: int, folder: Path, first: int = 0, resume: Path | None = None, **options
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(max_steps=steps, default_root_dir=folder, **QUIET, **options)
        trainer.fit(module, KeyedBatches(steps, first), ckpt_path=resume, weights_only=resume is not None or None)
    assert trainer.global_step == steps


@pytest.mark.parametrize("average_decay", [0.0, 0.9])
def test_a_resumed_run_continues_bit_for_bit(tmp_path, average_decay):
    options = {"average_decay": average_decay, "frames_per_clip": 2}
    straight, resumed = make_module(**options), make_module(**options)
    fit(straight, 8, tmp_path, callbacks=[SaveAt(5, tmp_path / "five.ckpt")])
    fit(resumed, 8, tmp_path, first=5, resume=tmp_path / "five.ckpt")
    expected, found = straight.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.parametrize("quantizer", ["simvq", "ibq", "fsq", "lfq", "bsq"])
@pytest.mark.parametrize("saved", [2, 5])
def test_every_quantizer_resumes_bit_for_bit_before_and_after_its_start(tmp_path, quantizer, saved):
    straight, resumed = make_module(quantizer, optimizer=MUON), make_module(quantizer, optimizer=MUON)
    fit(straight, 7, tmp_path, callbacks=[SaveAt(saved, tmp_path / "saved.ckpt")])
    fit(resumed, 7, tmp_path, first=saved, resume=tmp_path / "saved.ckpt")
    expected, found = straight.state_dict(), resumed.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_few_steps_lower_the_loss_and_use_the_codebook(tmp_path):
    module = make_module()
    batch = next(iter(KeyedBatches(1)))["image"]
    module.eval()
    before = psnr(module.tokenizer.decode(module.tokenizer.encode(batch)), batch).mean()
    module.train()
    fit(module, 40, tmp_path)
    tokenizer = module.tokenizer.eval()
    codes = tokenizer.encode(batch)
    assert psnr(tokenizer.decode(codes), batch).mean() > before + 3
    assert module.model.quantizer.started
    assert codes.unique().numel() > 4


def test_training_goes_on_from_a_saved_tokenizer(tmp_path):
    first = make_module()
    fit(first, 5, tmp_path)
    first.tokenizer.save_pretrained(tmp_path / "saved")
    second = make_module(start_from=str(tmp_path / "saved"))
    batch = next(iter(KeyedBatches(1)))["video"]
    first.eval(), second.eval()
    assert torch.equal(second.tokenizer.encode(batch), first.tokenizer.encode(batch))
    assert second.quantizer_warmup_steps == 0
    second.train()
    fit(second, 2, tmp_path)


def test_an_image_tokenizer_becomes_a_video_tokenizer(tmp_path):
    config = VisionTokenizerConfig.preset("small", **TINY, temporal_factor=1)
    image_tokenizer = VisionTokenizer(config).eval()
    image_tokenizer.save_pretrained(tmp_path)
    module = make_module(start_from=str(tmp_path))
    frames = torch.rand(2, 3, 8, 8) * 2 - 1
    spatial = image_tokenizer.encoder.spatial(frames)
    assert torch.equal(module.model.encoder.spatial(frames), spatial)
    assert torch.equal(module.model.quantizer.weight, image_tokenizer.quantizer.weight)
    last_tap = module.model.quant_conv.conv.weight[:, :, -1:]
    assert torch.equal(last_tap, image_tokenizer.quant_conv.conv.weight)
    assert (module.model.quant_conv.conv.weight[:, :, :-1] == 0).all()


def test_a_tokenizer_of_another_width_is_no_start(tmp_path):
    VisionTokenizer(VisionTokenizerConfig.preset("small", **{**TINY, "base_channels": 16})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        make_module(start_from=str(tmp_path))


def test_bfloat16_training_keeps_the_codebook_in_float32(tmp_path):
    module = make_module()
    fit(module, 5, tmp_path, precision="bf16-mixed")
    assert module.model.quantizer.weight.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in module.model.parameters())


def test_validation_before_the_first_step_leaves_the_codebook_alone(tmp_path):
    module = make_module()
    codes = module.model.quantizer.weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(default_root_dir=tmp_path, **QUIET).validate(module, KeyedBatches(2))
    assert not module.model.quantizer.started
    assert torch.equal(module.model.quantizer.weight, codes)


def test_looking_at_the_tokenizer_leaves_it_in_training():
    module = make_module().train()
    assert module.tokenizer is module.model
    assert all(part.training for part in module.model.modules())


def test_the_average_of_the_weights_is_what_the_module_hands_out(tmp_path):
    module = make_module(average_decay=0.5)
    fit(module, 6, tmp_path)
    raw, averaged = module.model, module.tokenizer
    assert averaged is not raw
    assert not torch.equal(raw.encoder.conv_in.weight, averaged.encoder.conv_in.weight)
    assert torch.equal(raw.quantizer.weight, averaged.quantizer.weight)


def test_the_discriminator_starts_late_and_does_not_count_as_a_step(tmp_path):
    options = AdversarialOptions(start_step=3, base_channels=8, num_layers=1, adaptive=True)
    module = make_module(adversarial=options)
    before = [p.clone() for p in module.discriminator.parameters()]
    fit(module, 3, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, module.discriminator.parameters(), strict=True))
    module = make_module(adversarial=options)
    fit(module, 5, tmp_path)
    assert not all(torch.equal(a, b) for a, b in zip(before, module.discriminator.parameters(), strict=True))


def test_a_discriminator_does_not_make_the_codebook_move_twice(tmp_path):
    module = make_module(adversarial=AdversarialOptions(start_step=1, base_channels=8, num_layers=1))
    fit(module, 5, tmp_path)
    steps, parts = 5 - module.quantizer_warmup_steps, 2  # images and clips
    assert int(module.model.quantizer.codebook.num_updates) == steps * parts


def test_codes_that_learn_by_gradients_are_left_to_adamw():
    config = VisionTokenizerConfig.preset("small", base_channels=8, codebook_size=32, quantizer="ibq")
    module = TokenizerModule(config, optimizer=MUON)
    others, matrices = module.configure_optimizers()[0].param_groups
    table = module.model.quantizer.embedding.weight
    assert any(p is table for p in others["params"]) and not any(p is table for p in matrices["params"])


def test_an_adversarial_run_resumes_bit_for_bit(tmp_path):
    options = {"adversarial": AdversarialOptions(start_step=1, base_channels=8, num_layers=1)}
    straight, resumed = make_module(**options), make_module(**options)
    fit(straight, 6, tmp_path, callbacks=[SaveAt(4, tmp_path / "four.ckpt")])
    fit(resumed, 6, tmp_path, first=4, resume=tmp_path / "four.ckpt")
    expected, found = straight.state_dict(), resumed.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_the_adaptive_weight_balances_the_gradients():
    weight = torch.ones(3, requires_grad=True)
    other, generator = (weight * 10).sum(), (weight * 2).sum()
    assert adaptive_weight(other, generator, weight).item() == pytest.approx(5.0, rel=1e-3)


def test_hinge_losses_are_zero_for_a_sure_discriminator():
    assert discriminator_loss(torch.full((2,), 2.0), torch.full((2,), -2.0)) == 0
    assert discriminator_loss(torch.zeros(2), torch.zeros(2)) == 1


def test_a_discriminator_too_deep_for_the_frames_says_so():
    with pytest.raises(ValueError, match="num_layers"):
        PatchDiscriminator()(torch.zeros(1, 3, 8, 8))


class Teacher(torch.nn.Module):
    """Mean colour of each 4x4 patch: features that codes can learn."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(frames, 4) + 0.1


def test_codes_learn_the_features_of_a_frozen_teacher(tmp_path):
    torch.manual_seed(0)
    module = make_module(teacher=Teacher(), teacher_dim=3, losses={"l2": 1.0, "commitment": 0.25, "alignment": 1.0})
    batch = next(iter(KeyedBatches(1)))
    before = {kind: module._reconstruct(pixels, 0)[0]["alignment"].item() for kind, pixels in batch.items()}
    fit(module, 30, tmp_path)
    after = {kind: module._reconstruct(pixels, 99)[0]["alignment"].item() for kind, pixels in batch.items()}
    assert all(after[kind] < 0.6 * before[kind] for kind in batch)


def test_a_teacher_of_another_width_is_refused():
    module = make_module(teacher=Teacher(), teacher_dim=5, losses={"l2": 1.0, "alignment": 1.0})
    with pytest.raises(ValueError, match=r"expected \(N, 5, h, w\)"):
        module._reconstruct(torch.zeros(1, 3, 8, 8), 0)


def test_training_on_some_frames_gives_the_pixels_of_those_frames():
    tokenizer = VisionTokenizer(VisionTokenizerConfig.preset("small", **TINY)).double().eval()
    clip = torch.rand(1, 6, 3, 8, 8, dtype=torch.float64)
    wanted = torch.tensor([1, 4])
    torch.testing.assert_close(
        tokenizer(clip, frame_indices=wanted).reconstruction, tokenizer(clip).reconstruction[:, wanted]
    )


def test_an_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="commitment"):
        make_module(losses={"l3": 1.0})
    with pytest.raises(ValueError, match="negative"):
        TokenizerLosses({"l2": -1.0})


def test_random_features_tell_pictures_apart_and_are_the_same_every_time():
    pixels = torch.rand(2, 3, 16, 16)
    assert RandomFeatures()(pixels, pixels) == 0
    blurred = torch.nn.functional.avg_pool2d(pixels, 3, 1, 1)
    assert RandomFeatures()(pixels, blurred) > 0
    assert torch.equal(RandomFeatures()(pixels, blurred), RandomFeatures()(pixels, blurred))


def test_psnr_is_of_rounded_pictures_and_one_perfect_picture_stays_finite():
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(psnr(pixels, pixels), psnr(pixels, pixels + 1e-7))
    assert psnr(pixels, pixels).tolist() == [100.0, 100.0]
    found = psnr(torch.full((1, 3, 8, 8), -1.0), torch.full((1, 3, 8, 8), 2 / 255 - 1.0))
    assert found.item() == pytest.approx(48.13, abs=0.01)


def test_codebook_use_counts_codes_and_how_even_they_are():
    counter = CodeCounter((4,))
    counter.add(torch.tensor([[0, 0], [1, 1]]))
    measured = counter.measure()
    assert (measured.use, measured.dead) == (0.5, 2)
    assert measured.perplexity == pytest.approx(2.0)
    several = CodeCounter((2, 4))
    several.add(torch.tensor([[0, 3], [1, 3]]))
    assert several.measure().use == pytest.approx(3 / 6)


def test_accumulation_is_refused_before_work():
    trainer = Trainer(accumulate_grad_batches=2, **QUIET)
    (problem,) = make_module().problems(trainer)
    assert problem.startswith("trainer.accumulate_grad_batches is 2")
