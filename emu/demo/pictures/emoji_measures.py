"""What the trained model can do with what it never saw, each beside two baselines: copying the nearest training picture, and the mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from emu.demo.pictures.emoji import person_and_tone, tone_words
from emu.demo.pictures.emoji_documents import motions, tone_changes
from emu.demo.pictures.motions import FPS, FRAMES, MOTIONS, clip_of, moves_as, moving_caption
from emu.demo.pictures.tone_judge import ToneJudge, share
from emu.own_data.picture_measures import Measured, describe, distances, measure_reconstruction, nearest_caption, small
from emu.pipeline import Emu
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.pixels.images import as_arrays
from emu_tokenizers.pixels.metrics import psnr
from emu_tokenizers.pixels.transforms import from_bytes


def parts(caption: str) -> tuple[str, str]:
    """Person and tone of a caption; the caption and "" where it says no tone."""
    return person_and_tone(caption) or (caption, "")


def measure_quality(vision: VisionTokenizer, judge: ToneJudge) -> Measured:
    """Held-out pictures after their codes."""
    store, rows = judge.store, judge.store.rows("held_out")
    found = measure_reconstruction(vision, store)
    pictures = np.asarray(store.pictures)
    copied = pictures[[judge.nearest_picture(row) for row in rows]]
    for kind, copies in (("copied", copied), ("mean", judge.mean_pictures(len(rows)))):
        quality = psnr(from_bytes(torch.from_numpy(copies)), from_bytes(torch.from_numpy(pictures[rows])))
        found.metrics[f"reconstruction_psnr_{kind}"] = round(float(quality.mean()), 3)
    return found


def measure_drawn(emu: Emu, judge: ToneJudge, each: int, seed: int) -> Measured:
    """Drawings for the captions of all held-out pictures, `each` of them."""
    store, rows = judge.store, judge.store.rows("held_out")
    captions = [store.captions[row] for row in rows]
    made = emu.generate_images(captions, size=store.pictures.shape[1:3], images_per_prompt=each, seed=seed)
    drawn = as_arrays([one.image for one in made])
    asked = [row for row in rows for _ in range(each)]
    metrics = {**judge.measure("drawn", drawn, asked), **judge.baselines("drawn", rows), "drawn": len(drawn)}
    nearest = distances(small(drawn[::each]), judge.real[judge.train]).argmin(1)
    pictures = {
        "drawn": drawn[::each],
        "asked": np.asarray(store.pictures)[rows],
        "nearest": np.asarray(store.pictures)[[judge.train[place] for place in nearest]],
    }
    return Measured(metrics, pictures, {"asked": captions})


def measure_described(emu: Emu, judge: ToneJudge) -> Measured:
    """Captions that the model writes for all held-out pictures: right are person and tone both, word by word."""
    store, rows = judge.store, judge.store.rows("held_out")
    captions = [store.captions[row] for row in rows]
    found = describe(emu, [[Image.fromarray(np.asarray(store.pictures[row]))] for row in rows], captions)
    copied = [store.captions[judge.nearest_picture(row)] for row in rows]
    pairs = list(zip(found.texts["described"], captions, strict=True))
    found.metrics = {
        "described_right": found.metrics["described_exactly"],
        "described_right_copied": share([one == other for one, other in zip(copied, captions, strict=True)]),
        "described_person": share([parts(one)[0] == parts(other)[0] for one, other in pairs]),
        "described_tone": share([parts(one)[1] == parts(other)[1] for one, other in pairs]),
    }
    found.pictures["described"] = np.asarray(store.pictures)[rows]
    return found


def measure_recoloured(emu: Emu, judge: ToneJudge, each: int, seed: int) -> Measured:
    """Training pictures in the tone in which the person was never seen, asked for in words; `each` of them."""
    store = judge.store
    changes = tone_changes(store, "held_out")
    given, asked = ([change[place] for change in changes] for place in (0, 1))
    pictures = np.asarray(store.pictures)
    words = [tone_words(parts(store.captions[row])[1]) for row in asked]
    made = recoloured(emu, pictures[given], words, each, seed)
    metrics = judge.measure("recoloured", made, np.repeat(asked, each).tolist())
    metrics |= judge.baselines("recoloured", asked)
    metrics |= {f"{name}_given": value for name, value in judge.measure("recoloured", pictures[given], asked).items()}
    shown = {"recoloured_from": pictures[given], "recoloured": made[::each], "recoloured_asked": pictures[asked]}
    return Measured({**metrics, "recoloured": len(made)}, shown, {"recoloured": words})


def recoloured(emu: Emu, pictures: np.ndarray, words: Sequence[str], each: int, seed: int) -> np.ndarray:
    """(N * each, H, W, 3) uint8: pictures (N, H, W, 3) uint8 drawn anew after the words."""
    documents = [[picture, text] for picture, text in zip(pictures, words, strict=True)]
    made = emu.generate_images(documents, size=pictures.shape[1:3], images_per_prompt=each, seed=seed)
    return as_arrays([one.image for one in made])


def measure_animated(emu: Emu, judge: ToneJudge, seed: int) -> Measured:
    """Clips of pictures in the motion in which they were never seen; beside them copies of the clips with the nearest captions."""
    store = judge.store
    pictures = np.asarray(store.pictures)
    seen, asked = ([(row, MOTIONS[way]) for row, way in motions(store, part)] for part in ("train", "held_out"))
    prompts = [moving_caption(store.captions[row], way) for row, way in asked]
    results = emu.generate_videos(prompts, size=pictures.shape[1:3], frames=FRAMES, fps=FPS, seed=seed)
    captions = [moving_caption(store.captions[row], way) for row, way in seen]
    copied = [seen[nearest_caption(prompt, captions)] for prompt in prompts]
    clips = {
        "": [as_arrays(result.frames) for result in results],
        "_copied": [clip_of(pictures[row], way) for row, way in copied],
        "_of_real": [clip_of(pictures[row], way) for row, way in asked],
    }
    clips["_mean"] = [np.stack(clips["_of_real"]).mean(0).astype(np.uint8)] * len(asked)
    rows, ways = zip(*asked, strict=True)
    metrics = {}
    for kind, made in clips.items():
        moves, first = moves_as(made, ways), np.stack([clip[0] for clip in made])
        metrics[f"animated_motion_right{kind}"] = share(moves)
        metrics[f"animated_right{kind}"] = share(moves & judge.is_nearest(first, rows))
    shown = {"animated": np.stack(clips[""]), "animated_real": np.stack(clips["_of_real"])}
    return Measured({**metrics, "animated": len(prompts)}, shown, {"animated": prompts})
