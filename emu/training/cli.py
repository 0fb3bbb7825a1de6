"""`emu fit` and `emu fit-tokenizer`: Lightning's command line over one recipe, as a command and as a function.

    emu fit --config digits
    emu fit --config recipes/digits.yaml --trainer.max_steps 100 --model.optimizer.lr 5e-4
    emu fit --config digits --ckpt_path last          # go on where the run was stopped
    emu fit --config lora-emu3                        # a recipe may name the module that is trained by model.class_path
    torchrun --nproc_per_node 2 -m emu.cli.main fit --config digits --trainer.devices 2

A run's folder is `trainer.default_root_dir`, `runs/<recipe>` by default. It holds `config.yaml` (the merged configuration: a recipe that
repeats the run), `config.resolved.yaml` (the same without references), `metrics.csv` and `loss.png`, `checkpoints/`, and at the end
`model/`, which `from_pretrained` reads.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy

from emu.configuration.problems import Problem, raise_problems
from emu.configuration.written import Written
from emu.model import EmuConfig
from emu.stopping import Stopped, handled
from emu.training.checkpoints import (
    AtomicCheckpointIO,
    StepCheckpoint,
    StopTraining,
    list_checkpoints,
    resolve_checkpoint,
)
from emu.training.curves import CurveLogger
from emu.training.export import export_folder
from emu.training.loggers import logger_problems, make_loggers
from emu.training.lost_ranks import MeetRanks, lost_rank
from emu.training.module import EmuModule
from emu.training.module_class import BUILD_ERRORS, build_apart, complete_settings, find_class, take_class
from emu.training.parallel import load_ours
from emu.training.parsing import parse
from emu.training.preflight import CheckData, early_problems
from emu.training.progress import StepProgressBar
from emu.training.record import SaveConfig, as_written, comparable
from emu.training.refusals import reason
from emu.training.resume import Resume, changes, recorded, refused
from emu.training.words import as_list, split_words
from emu_tokenizers import VisionTokenizerConfig
from emu_tokenizers.files import holding

TRAINER_DEFAULTS = {
    "max_epochs": -1,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
}
PRINT_CONFIG = "--print_config"
UNWANTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",
)


class EmuCLI(LightningCLI):
    """A Lightning command line without subcommands: parse, check everything, fit, export.

    Args:
        model_class: the module that is trained where the recipe names no other in `model.class_path`.
        args: command-line words.
        name: of the command, for its help.
        recipe: what the command line's recipes are merged over; a stage of a job is given so.
    """

    def __init__(
        self,
        model_class: type[LightningModule],
        args: Sequence[str],
        name: str = "emu fit",
        recipe: Written | None = None,
    ) -> None:
        self._words = split_words(args)
        self._written = self._words.read(recipe)
        named = take_class(self._written)
        self._named_class = self._words.module or named
        module = find_class(self._named_class, model_class, self._written)
        self._module_class: type[LightningModule] = module
        self._class_path = f"{module.__module__}.{module.__qualname__}"
        set_parsing_settings(subclasses_disabled=[EmuConfig, VisionTokenizerConfig])  # their fields are options
        with quiet():
            super().__init__(
                module,
                LightningDataModule,
                subclass_mode_data=True,
                save_config_callback=SaveConfig,
                trainer_defaults=dict(TRAINER_DEFAULTS),
                seed_everything_default=0,
                parser_kwargs={
                    "prog": name,
                    "description": f"{name}: train from a recipe",
                    "exit_on_error": False,
                    "allow_abbrev": False,
                },
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                run=False,
                args=list(args),
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our options beside the trainer's, the model's and the data's."""
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help='checkpoint to go on from, or "last" for the newest of this run',
        )
        parser.add_argument("--overwrite", type=bool, default=False, help="start anew in the folder of an earlier run")
        parser.add_argument(
            "--export",
            type=str | None,
            default="model",
            help="folder for the trained model, inside the run's; null for none",
        )
        parser.add_argument(
            "--loggers",
            type=list[str],
            default=[],
            help="loggers beside the table of curves and its page: tensorboard, wandb",
        )
        parser.add_lightning_class_args(StepCheckpoint, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; name the run's folder after the recipe where nothing else is said.

        Raises:
            ValueError, FileNotFoundError: a recipe cannot be read.
        """
        printing = PRINT_CONFIG in self._words.options
        if printing:
            self._words.options.remove(PRINT_CONFIG)
        classes: dict[str, type] = {"trainer": Trainer, "model": self._module_class, "checkpoint": StepCheckpoint}
        self.parsed = parse(parser, self._words, self._written, classes)
        if self.parsed.config is None or (printing and self.parsed.problems):
            self._refuse(())
        assert self.parsed.config is not None
        self.config = self.parsed.config
        if self.config.trainer.default_root_dir is None:
            self.config.trainer.default_root_dir = str(Path("runs") / self._words.run_name)
        complete_settings(self.config.trainer)
        self.parsed.problems += logger_problems(as_list(self.config.loggers))
        if printing:
            print(as_written(parser, self.config, self.parsed.resolved, self._named_class), end="")
            raise SystemExit(0)
        self.save_config_kwargs |= {"resolved": self.parsed.resolved, "class_path": self._named_class}

    def instantiate_classes(self) -> None:
        """Build the module, the data and the trainer.

        Raises:
            ValueError: some of them cannot be built, or the configuration has other problems; all that can be found.
        """
        try:
            super().instantiate_classes()
        except BUILD_ERRORS as error:
            parts, found = build_apart(self.parser, self.config)
            self.parsed.problems += found or [Problem(reason(str(error)), ("trainer",))]
            # the trainer's settings stand for it: what asks for the number of steps finds it there
            self._refuse(early_problems(self.config.trainer, parts.get("model"), parts.get("data")))
        if self.parsed.problems:
            self._refuse(early_problems(self.trainer, self.model, self.datamodule))

    def _refuse(self, more: Sequence[Problem | str]) -> None:
        raise_problems([*self.parsed.problems, *more], self.parsed.written)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.trainer.default_root_dir)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with our logger, progress bar and checkpoint writer."""
        settings = self.config_init.trainer
        if settings.logger is not False:  # our curves beside any other logger
            others = [] if settings.logger is True else as_list(settings.logger)
            settings.logger = [
                CurveLogger(str(self.folder)),
                *make_loggers(as_list(self.config.loggers), self.folder),
                *others,
            ]
        callbacks = as_list(settings.callbacks)
        if settings.enable_progress_bar is not False and not any(
            isinstance(callback, ProgressBar) for callback in callbacks
        ):
            callbacks.append(StepProgressBar())
        export = None if self.config.export is None else self.folder / self.config.export
        values = comparable(self.parser, self.config, self.parsed.resolved, self._class_path)
        self._resume = Resume(recorded(values))
        self._meeting = MeetRanks()
        settings.callbacks = [self._meeting, *callbacks, CheckData(self.parsed.written, export), self._resume]
        settings.plugins = [*as_list(settings.plugins), AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        if isinstance(trainer.strategy, ModelParallelStrategy):
            load_ours(trainer.strategy)
        return trainer

    def fit(self) -> LightningModule:
        """Check, train, export.

        Raises:
            ValueError: the configuration cannot work, the folder holds another run or another process works in it, or the checkpoint to go
                on from is damaged or of another run.
            FileNotFoundError: there is no such checkpoint.
            Stopped: Ctrl-C or SIGTERM ended the run, which has saved.
            ConnectionError: another process of this run has ended.
        """
        self._refuse(early_problems(self.trainer, self.model, self.datamodule))
        with ExitStack() as stack:
            if self.trainer.is_global_zero:
                stack.enter_context(holding(self.folder, str(self.parser.prog)))
            checkpoint = self._checkpoint()
            stack.enter_context(quiet())
            self._train(checkpoint)
            if self.config.export is not None and self.trainer.state.finished and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                export_folder(self.trainer, self.model, self.datamodule, self.folder / self.config.export)
        return self.model.eval()

    def _train(self, checkpoint: Path | None) -> None:
        self._meeting.start(self.trainer)
        try:
            with handled({signal.SIGINT: signal.getsignal(signal.SIGINT)}):  # Lightning leaves it ignored after Ctrl-C
                self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except StopTraining as stop:
            step = self.trainer.global_step
            saved = f"saved at step {step}; go on with --ckpt_path last" if step else "no step was finished"
            raise Stopped(stop.number, saved) from None
        except SystemExit as end:
            if self.trainer.interrupted:  # by a second Ctrl-C, or a signal before the first step
                number = getattr(end.__context__, "number", signal.SIGINT)
                raise Stopped(number, "nothing was saved since the last checkpoint") from None
            raise
        except RuntimeError as error:
            lost = lost_rank(error, self.trainer.world_size)
            if lost is None:
                raise
            raise lost from error

    def _checkpoint(self) -> Path | None:
        """The checkpoint to go on from, found to be whole and of a run like this one; None for a start from scratch."""
        folder = next(c for c in self.trainer.checkpoint_callbacks if isinstance(c, StepCheckpoint)).path(self.trainer)
        found = list_checkpoints(folder)
        if self.config.ckpt_path is None and found:
            if not self.config.overwrite:
                raise ValueError(
                    f"{self.folder} holds a run of {found[-1][0]} steps; go on with --ckpt_path last, start anew with --overwrite true, "
                    "or name another folder with --trainer.default_root_dir"
                )
            for _, old in found:
                old.unlink(missing_ok=True)
        checkpoint = resolve_checkpoint(self.config.ckpt_path, folder)
        if checkpoint is None:
            return None
        self._compare(checkpoint.content)
        return checkpoint.path

    def _compare(self, content: dict[str, Any]) -> None:
        """Refuse a checkpoint of a run that this one cannot go on with; note what has changed otherwise."""
        found = changes(content.get("configuration", {}), self._resume.configuration)
        free = getattr(self.datamodule, "free_options", ())
        kept = hasattr(self.model, "merge") or getattr(getattr(self.model, "objective", None), "keeps_start", False)
        raise_problems(refused(found, free, start_is_kept=kept), self.parsed.written)
        self._resume.found = found


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's notes on devices and tips for its products; its warnings stay, but for those that do not apply to us."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in UNWANTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def fit(arguments: Sequence[str]) -> LightningModule:
    """Train a transformer in this process, as `emu fit` does.

    Args:
        arguments: the words after `emu fit`, e.g. ["--config", "digits", "--trainer.max_steps", "100"].

    Returns:
        The fitted module, an `EmuModule` where the recipe names no other; its `model` is the transformer.

    Raises:
        ValueError: the configuration cannot work.
        FileNotFoundError: no such recipe, file or checkpoint.
        FloatingPointError: training diverged.
    """
    return EmuCLI(EmuModule, arguments).fit()


def fit_tokenizer(arguments: Sequence[str]) -> LightningModule:
    """Train a vision tokenizer in this process, as `emu fit-tokenizer` does; see `fit`."""
    from emu_tokenizers.training.tokenizer_module import TokenizerModule

    return EmuCLI(TokenizerModule, arguments, name="emu fit-tokenizer").fit()
