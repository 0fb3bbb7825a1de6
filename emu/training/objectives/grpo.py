"""Group relative policy optimisation on the codes of pictures and clips, with the log-probabilities of what was drawn.

    emu fit --config shapes-grpo --model.pretrained runs/shapes/model

Each step draws a group of answers to every prompt with the engine, scores them, and moves the model towards those that are better than
their group. What is differentiated is the distribution that the engine drew from, guidance included (`code_distributions`), so that at
the default settings the expected step is the gradient of the expected reward; `tests/test_objectives_gradient.py` compares the two in a
world whose outcomes can be enumerated. The codes are those that were drawn: nothing is tokenized again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from emu.generation import Engine
from emu.generation.sampling import Sampling
from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.packing import Packed
from emu.rewards import Reward
from emu.training.objectives.advantages import (
    Baseline,
    Credit,
    GroupAdvantages,
    group_advantages,
    token_credit,
)
from emu.training.objectives.base import LossParts, Objective
from emu.training.objectives.code_distributions import (
    BlockScores,
    DrawnBlocks,
    block_scores,
    divergence,
    drawn_log_probs,
    entropy,
    kept_candidates,
)
from emu.training.objectives.frozen_reference import FrozenReference, without_dropout
from emu.training.objectives.group_drawing import DrawnGroups, GroupDrawing, prompts_of

MOST_UNSCORED = 10
"""So many steps in a row without a single score end the run: the reward does not work."""


@dataclass(frozen=True)
class Experience:
    """Drawn blocks that are learned from.

    Attributes:
        blocks: N of them.
        advantages: (N,) float64.
        log_probs: (N, T) with which each code was drawn; None where that is what the model gives now, in the first update.
    """

    blocks: DrawnBlocks
    advantages: Tensor
    log_probs: Tensor | None = None

    def split(self, size: int) -> Iterator[Experience]:
        """The blocks in order, at most `size` at a time."""
        for start in range(0, len(self.blocks), size):
            some = slice(start, start + size)
            log_probs = None if self.log_probs is None else self.log_probs[some]
            yield Experience(self.blocks[some], self.advantages[some], log_probs)


class GRPO(Objective):
    """Groups of answers, drawn on policy, each learned from by how much better it is than its group (arXiv 2402.03300).

    A batch holds prompts, documents that end in the header of a block. The loss is the mean over prompts and answers of the sum over codes
    of -credit * ratio, divided by the number of codes of a block: no length of its own, no deviation by default (arXiv 2503.20783). Groups
    whose rewards are all equal or hold a NaN are left out and counted; the divisor counts them, which keeps the mean over prompts.

    Args:
        reward: class path of a callable `(candidates) -> scores`, or of a class whose instances are (`emu.rewards`).
        group_size: answers to a prompt.
        sampling: how codes are drawn; the temperature is above 0.
        baseline, divide_by_deviation: see `group_advantages`.
        credit: "plain" or "contrast", see `token_credit`.
        clip: ratios beyond 1 - clip and 1 + clip earn nothing more (PPO, arXiv 1707.06347).
        clip_high: the upper bound's own width (DAPO, arXiv 2503.14476, section 3.1); `clip` by default.
        kl: weight of the divergence from the reference at each code, summed over all candidates instead of estimated from one, of the
            guided and tempered distributions before candidates are left out (weight as in GRPO; UniRL, T2I-R1: .01).
        entropy: weight of a bonus for the entropy of the same distribution (Williams and Peng 1991; arXiv 1602.01783).
        updates: steps that learn from one drawing; the prompts of the batches after the first are left out.
        reference: folder of the model that `kl` keeps near; the weights that training starts from by default, of a model with adapters
            those without them.
        tokenizer: folder that reads prompts and turns codes into pictures; by default the data's.
        answers_per_pass: sequences that the model sees at a time; their activations are computed again in the backward pass where there
            are more.
    """

    def __init__(
        self,
        reward: Reward,
        group_size: int = 8,
        sampling: Sampling = Sampling(guidance_scale=3.0),  # noqa: B008 (frozen)
        baseline: Baseline = "leave_one_out",
        divide_by_deviation: bool = False,
        credit: Credit = "plain",
        clip: float = 0.2,
        clip_high: float | None = None,
        kl: float = 0.0,
        entropy: float = 0.0,
        updates: int = 1,
        reference: str | None = None,
        tokenizer: str | None = None,
        answers_per_pass: int = 256,
    ) -> None:
        self.reward, self.group_size, self.sampling = reward, group_size, sampling
        self.baseline, self.divide_by_deviation, self.credit = baseline, divide_by_deviation, credit
        self.clip, self.clip_high = clip, clip if clip_high is None else clip_high
        self.kl, self.entropy, self.updates = kl, entropy, updates
        self.reference_folder, self.tokenizer_folder, self.answers_per_pass = reference, tokenizer, answers_per_pass
        self._held: list[Experience] = []
        self._told: dict[str, Tensor] = {}
        self._used, self._prompts, self._unscored = updates, 0, 0

    @property
    def keeps_start(self) -> bool:
        """See `Objective`: where they are the reference."""
        return bool(self.kl) and self.reference_folder is None

    def setup(self, module: LightningModule) -> None:
        """Open an engine on the model, and keep the reference where it is asked for."""
        tokenizer = self._tokenizer(module)
        assert isinstance(module.model, EmuForCausalLM)
        engine = Engine(module.model, tokenizer.layout, check_length=False)
        self._drawing = GroupDrawing(engine, tokenizer, self.reward, self.group_size, self.sampling)
        self._reference = FrozenReference(module, self.reference_folder) if self.kl else None

    def _tokenizer(self, module: LightningModule) -> MultimodalTokenizer:
        if self.tokenizer_folder is not None:
            return MultimodalTokenizer.from_pretrained(self.tokenizer_folder)
        found = getattr(getattr(module.trainer, "datamodule", None), "tokenizer", None)
        if not isinstance(found, MultimodalTokenizer):
            raise ValueError(
                "the data has no tokenizer that turns codes into pictures; name the model's folder in objective.tokenizer"
            )
        return found

    def problems(self, trainer: Trainer) -> list[str]:
        """What is wrong with the numbers; one sentence each."""
        found = []
        if not callable(self.reward):
            found.append(f"objective.reward is {self.reward!r}; expected the class path of a callable")
        for name, least in (("group_size", 2), ("updates", 1), ("answers_per_pass", 1)):
            if getattr(self, name) < least:
                found.append(f"objective.{name} is {getattr(self, name)}; expected {least} or more")
        for name in ("clip", "clip_high", "kl", "entropy"):
            if not 0 <= getattr(self, name) < float("inf"):
                found.append(f"objective.{name} is {getattr(self, name)}; expected 0 or more")
        if self.sampling.temperature == 0:
            found.append("objective.sampling.temperature is 0, which draws nothing; expected more than 0")
        if self.credit == "contrast" and not self.sampling.guided:
            found.append(
                "objective.credit is contrast, which needs guidance; set sampling.guidance_scale to other than 1"
            )
        if self.updates > 1 and trainer.accumulate_grad_batches > 1:
            found.append("objective.updates is above 1 and trainer.accumulate_grad_batches too; set one of them to 1")
        if type(trainer.strategy).__name__ in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"):
            found.append("trainer.strategy shards the model, and the engine draws from whole weights; use ddp")
        return found

    def weight(self, batch: Packed) -> Tensor:
        """() number of prompts."""
        return batch.segment_ids.max(dim=1).values.sum().to(batch.loss_weights.dtype)

    def loss(self, model: EmuForCausalLM, batch: Packed) -> LossParts:
        """The loss of the prompts of a batch, rows (R, S); see the class."""
        if self._used >= self.updates:
            # The step's generator was seeded by the run's seed, the batch and the rank (`Objective`).
            self._collect(model, prompts_of(batch), int(torch.randint(2**62, ()).item()))
        self._used += 1
        # A batch without anything to learn from still has a gradient, of zeros.
        total: Tensor = sum(0.0 * one.sum() for one in model.parameters() if one.requires_grad)  # type: ignore[assignment]
        sums = torch.zeros(4, dtype=torch.float64)
        with without_dropout(model):
            for experience in self._held:
                parts = list(experience.split(self.answers_per_pass))
                for part in parts:
                    lost, counted = self._part(model, part, recompute=len(parts) > 1)
                    total, sums = total + lost, sums + counted
        means = (sums[:3] / sums[3].clamp(min=1)).to(total.device)
        metrics = self._told | dict(zip(("kl", "entropy", "clipped"), means, strict=True))
        return LossParts(total / max(1, self._prompts * self.group_size), metrics)

    def scores(self, model: EmuForCausalLM, blocks: DrawnBlocks, *, recompute: bool = False) -> BlockScores:
        """The distribution that blocks were drawn from, see `block_scores`."""
        return block_scores(model, blocks, recompute=recompute)

    def _part(self, model: EmuForCausalLM, part: Experience, *, recompute: bool) -> tuple[Tensor, Tensor]:
        """The summed loss of some answers, and the sums of divergence, entropy and clipped codes, and the number of codes."""
        scores = self.scores(model, part.blocks, recompute=recompute)
        blocks = recorded(part.blocks, scores)
        log_probs = drawn_log_probs(scores.open, blocks)
        before = log_probs.detach() if part.log_probs is None else part.log_probs.to(log_probs)
        ratio = (log_probs - before).exp()
        credit = token_credit(part.advantages.to(ratio), scores.contrast, self.credit)
        free, bounded = ratio * credit, ratio.clamp(1 - self.clip, 1 + self.clip_high) * credit
        spread, apart = entropy(scores.open), torch.zeros_like(ratio)
        if self._reference is not None:
            with self._reference.model(model) as reference:
                theirs = self.scores(reference, blocks).open
            apart = divergence(scores.open, theirs)
        lost = self.kl * apart - self.entropy * spread - torch.minimum(free, bounded)
        counted = [apart.detach(), spread.detach(), free.detach() > bounded.detach(), torch.ones_like(apart)]
        return lost.mean(1).sum(), torch.stack([some.double().sum().cpu() for some in counted])

    @torch.no_grad()
    def _collect(self, model: EmuForCausalLM, prompts: Sequence[Tensor], key: int) -> None:
        """Draw groups, and keep the answers that can be learned from."""
        drawn = self._drawing(prompts, key) if prompts else []
        found = [group_advantages(groups.rewards, self.baseline, self.divide_by_deviation) for groups in drawn]
        self._note(drawn, found)
        self._held, self._prompts, self._used = [], len(prompts), 0
        for groups, some in zip(drawn, found, strict=True):
            numbers = some.used.repeat_interleave(self.group_size).nonzero()[:, 0].tolist()
            if numbers:
                experience = Experience(groups.blocks[numbers], some.values.flatten()[numbers])
                self._held.append(self._with_log_probs(model, experience) if self.updates > 1 else experience)

    def _with_log_probs(self, model: EmuForCausalLM, experience: Experience) -> Experience:
        """Record what the weights that drew give, for updates of others."""
        kept, log_probs = [], []
        with without_dropout(model):
            for blocks in experience.blocks.split(self.answers_per_pass):
                scores = self.scores(model, blocks)
                blocks = recorded(blocks, scores)
                assert blocks.kept is not None
                kept.append(blocks.kept.cpu())
                log_probs.append(drawn_log_probs(scores.open, blocks).cpu())
        return Experience(replace(experience.blocks, kept=torch.cat(kept)), experience.advantages, torch.cat(log_probs))

    def _note(self, drawn: Sequence[DrawnGroups], found: Sequence[GroupAdvantages]) -> None:
        """Keep what is to be told of groups.

        Raises:
            RuntimeError: the reward has given nothing for too long.
        """
        rewards = torch.cat([groups.rewards for groups in drawn] or [torch.zeros(1, 2, dtype=torch.float64)])
        unscored = torch.cat([some.is_unscored for some in found] or [torch.zeros(1, dtype=torch.bool)])
        constant = torch.cat([some.is_constant for some in found] or [torch.zeros(1, dtype=torch.bool)])
        distinct = torch.cat([groups.distinct for groups in drawn] or [torch.zeros(1, dtype=torch.float64)])
        self._unscored = self._unscored + 1 if bool(unscored.all()) else 0
        if self._unscored == MOST_UNSCORED:
            raise RuntimeError(f"the reward gave no score in {MOST_UNSCORED} steps in a row; see to it, and resume")
        scored = rewards[torch.logical_not(unscored)]
        self._told = {
            "reward": scored.mean(),  # NaN where nothing is scored, which counts in no mean
            "deviation": scored.std(1).mean() if len(scored) else scored.mean(),
            "constant_groups": constant.double().mean(),
            "unscored_groups": unscored.double().mean(),
            "distinct": distinct.mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What every process holds for further updates; all of them must call this."""
        if self.updates == 1:
            return {}
        held = [
            {
                "modality": some.blocks.modality,
                "grid": list(some.blocks.template.cells),
                "prompts": list(some.blocks.prompts),
                "negatives": list(some.blocks.negatives),
                "codes": some.blocks.codes,
                "kept": some.blocks.kept,
                "advantages": some.advantages,
                "log_probs": some.log_probs,
            }
            for some in self._held
        ]
        told = {name: value.cpu() for name, value in self._told.items()}
        return {"ranks": of_all_ranks({"held": held, "used": self._used, "prompts": self._prompts, "told": told})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, with what this process held; of another number of processes each draws anew."""
        parts = state.get("ranks", [state]) if state else []
        rank, number = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if len(parts) != number:
            return
        state, layout = parts[rank], self._drawing.engine.layout
        self._used, self._prompts, self._told = int(state["used"]), int(state["prompts"]), dict(state["told"])
        self._held = [
            Experience(
                DrawnBlocks(
                    prompts=some["prompts"],
                    negatives=some["negatives"],
                    codes=some["codes"],
                    template=layout.block(some["modality"], tuple(some["grid"])),
                    sampling=self.sampling,
                    modality=some["modality"],
                    kept=some["kept"],
                ),
                some["advantages"],
                some["log_probs"],
            )
            for some in state["held"]
        ]


def of_all_ranks(state: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process holds, in the order of their ranks."""
    if not dist.is_initialized():
        return [state]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, state)
    return found


def recorded(blocks: DrawnBlocks, scores: BlockScores) -> DrawnBlocks:
    """The blocks with their candidates: those that were recorded, or those of the weights that drew."""
    return blocks if blocks.kept is not None else replace(blocks, kept=kept_candidates(scores.open, blocks))
