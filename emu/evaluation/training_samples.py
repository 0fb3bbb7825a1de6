"""Pictures, clips and descriptions that a transformer makes as it trains."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline import Emu
from emu.pipeline.model_folder import read_defaults
from emu.tokenizer_folder import TOKENIZER_FILE
from emu.training.loggers import Sample
from emu.training.samples import SampleCallback
from emu_tokenizers.pixels.images import open_image


class DrawSamples(SampleCallback):
    """Draws pictures and clips, and describes pictures, every N steps.

    They come into the run's folder, `samples/step=00000500/`, into its `run.html`, and into every logger that shows pictures.

    Args:
        every_n_steps: steps between two sets of samples.
        images: prompts of pictures.
        videos: prompts of clips.
        describe: files of pictures to describe.
        question: what is asked about them.
        options: of `Emu.generate_images` for pictures, e.g. {size: [64, 64], guidance_scale: 3}; by default those of the exported model.
        video_options: of `Emu.generate_videos`, likewise.
        max_new_tokens: of a description.
        seed: of all samples.

    Raises:
        ValueError: there is nothing to draw, or a number is out of its range.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        images: Sequence[str] = (),
        videos: Sequence[str] = (),
        describe: Sequence[str] = (),
        question: str = "",
        options: Mapping[str, Any] | None = None,
        video_options: Mapping[str, Any] | None = None,
        max_new_tokens: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps)
        if not (images or videos or describe):
            raise ValueError("DrawSamples has nothing to draw; give it images, videos or describe")
        self.images, self.videos, self.describe = list(images), list(videos), list(describe)
        self.question, self.max_new_tokens, self.seed = question, max_new_tokens, seed
        self.options, self.video_options = dict(options or {}), dict(video_options or {})

    def draw(self, trainer: Trainer, module: LightningModule) -> list[Sample]:
        """See `SampleCallback`."""
        assert isinstance(module.model, EmuForCausalLM)
        emu, samples = sampling_emu(module.model, trainer.datamodule), list[Sample]()  # type: ignore[attr-defined]
        if self.images:
            for number, image in enumerate(emu.generate_images(self.images, seed=self.seed, **self.options)):
                samples.append(Sample(f"image-{number}", image.prompt, (image.image,)))
        if self.videos:
            for number, clip in enumerate(emu.generate_videos(self.videos, seed=self.seed, **self.video_options)):
                samples.append(Sample(f"video-{number}", clip.prompt, tuple(clip.frames), clip.fps))
        if self.describe:
            pictures = [open_image(file) for file in self.describe]
            asked = [[picture, self.question] if self.question else [picture] for picture in pictures]
            texts = emu.generate_text(asked, max_new_tokens=self.max_new_tokens, seed=self.seed)
            for number, (file, picture, text) in enumerate(zip(self.describe, pictures, texts, strict=True)):
                samples.append(Sample(f"text-{number}", self.question or Path(file).name, (picture,), text=text))
        return samples


def sampling_emu(model: EmuForCausalLM, datamodule: Any) -> Emu:
    """What `from_pretrained` would read of the exported model, with the weights as they are now.

    Raises:
        ValueError: the data does not write tokenizers beside the model.
    """
    with tempfile.TemporaryDirectory(prefix="emu-samples-") as name:
        folder = Path(name)
        if hasattr(datamodule, "save_pretrained"):
            datamodule.save_pretrained(folder)
        if not (folder / TOKENIZER_FILE).is_file():
            raise ValueError(
                "samples need the tokenizers, and the data does not name them; set data.init_args.tokenizer"
            )
        tokenizer = MultimodalTokenizer.from_pretrained(folder)
        defaults, trained = read_defaults(folder, tokenizer)
    return Emu(model, tokenizer, defaults, trained=trained)
