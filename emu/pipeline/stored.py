"""The parts of an `Emu`, and how they are loaded, saved, moved and named."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from emu.checkpoints.repositories import model_name as folder_name
from emu.checkpoints.repositories import push
from emu.generation import Engine
from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.model_folder import check_vocabulary, read_parts, write_folder
from emu.pipeline.requests import GenerationDefaults, check_device
from emu.trained import UNKNOWN, Trained

if TYPE_CHECKING:
    from typing_extensions import Self

SAMPLES = 256
"""Numbers of a weight that its fingerprint reads."""


class StoredEmu:
    """The parts of an `Emu`, with loading, naming and saving; `Emu`, which documents the arguments, adds the tasks."""

    def __init__(
        self,
        model: EmuForCausalLM,
        tokenizer: MultimodalTokenizer,
        defaults: GenerationDefaults | None = None,
        *,
        deterministic: bool = False,
        trained: Trained = UNKNOWN,
    ) -> None:
        check_vocabulary(model, tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.trained = trained
        self.defaults = defaults or GenerationDefaults.from_dict({}, self.trained)
        self.deterministic = deterministic
        self._engines: dict[tuple[bool, torch.dtype, torch.device], Engine] = {}
        self._hashed: tuple[MultimodalTokenizer, list[tuple[int, int]], list[str]] | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        deterministic: bool = False,
        verify: bool = False,
        **options: Any,
    ) -> Self:
        """Load a folder written by `save_pretrained`, a bundled model by name ("digits"), or a released Emu3 or Emu3.5.

        Args:
            path: a folder, or the name of a bundled model, which wins over a folder of that name (write "./digits" for the folder);
                for released models also a hub repository.
            device: where to generate; by default a GPU if there is one.
            dtype: of the transformer; float32 by default, for released models that of their files.
            deterministic: see `Emu`.
            verify: check the content of every file against the checksums in `emu.json`; lengths are always checked.
            options: of transformers (`device_map`, `quantization_config`, which may be "int8", "int4" or "fp8", ...); for released models
                `vision_tokenizer`, `text_tokenizer`, `templates`, `split`, `allow_pickle`; for a hub repository `revision`, `token`,
                `cache_dir`, `local_files_only`, `force_download` (see `emu.hub.load.read_released`).

        Raises:
            FileNotFoundError: there is no such folder, or parts of it are missing.
            ValueError: there is no such device, a file is damaged, or model and tokenizers do not belong together (the message names
                both fingerprints).
        """
        target = check_device(device)
        if options.get("quantization_config") is not None and target.type == "cuda":
            options.setdefault("device_map", str(target))  # weights are quantized where they will be
        parts = read_parts(path, dtype, verify, options)
        emu = cls(parts.model, parts.tokenizer, parts.defaults, deterministic=deterministic, trained=parts.trained)
        if device is None and options.get("device_map") is not None:
            return emu
        return emu.to(target)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that `from_pretrained` reads; the folder appears once it is complete.

        A model already in the folder is replaced as a whole; files in it that are not part of a model stay.

        Raises:
            ValueError: the folder is the working folder or contains it.
        """
        write_folder(Path(folder), self.model, self.tokenizer, self.defaults, self.trained)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload what `save_pretrained` writes to a hub repository, which is created if it does not exist.

        Args:
            repository: owner/name, or a name in your own account.
            private: visibility of a new repository; by default the hub's.
            revision: branch, created if it does not exist; by default the main one.
            token: by default that of `hf auth login` or HF_TOKEN.
            commit_message: by default "Upload Emu".
            create_pr: open a pull request instead.

        Returns:
            The URL of the commit.

        Raises:
            ValueError: not logged in, the token has no write access, or the hub cannot be reached.
        """
        return push(
            repository,
            self.save_pretrained,
            kind="Emu",
            private=private,
            revision=revision,
            token=token,
            commit_message=commit_message,
            create_pr=create_pr,
        )

    def to(self, device: str | torch.device) -> Self:
        """Move the model and the codecs that have weights; returns itself."""
        self._engines = {}
        self.model.to(device)  # type: ignore[arg-type]
        for codec in _modules(self.tokenizer):
            codec.to(device)
        return self

    @property
    def fingerprint(self) -> str:
        """Identifies vocabulary, tokenizers and the transformer's weights."""
        weights = [(p.data_ptr(), p._version) for codec in _modules(self.tokenizer) for p in codec.parameters()]
        if self._hashed is None or self._hashed[:2] != (self.tokenizer, weights):
            # A codec is hashed as a whole, which takes too long for every call.
            self._hashed = self.tokenizer, weights, list(self.tokenizer.fingerprints.values())
        return "-".join([*self._hashed[2], weights_fingerprint(self.model)])

    @property
    def model_name(self) -> str:
        """The model name in results: the folder's or repository's name, and the fingerprint."""
        return f"{self._name} {self.fingerprint}"

    def __repr__(self) -> str:
        config = self.model.config
        tasks = f", {', '.join(self.trained.tasks)}" if self.trained.tasks else ""
        size = f"{self.model.num_parameters() / 1e6:.1f}M parameters, {config.vocab_size} ids"
        return f"Emu({self._name}: {size}, {self.model.dtype} on {self.model.device}{tasks})"

    def __getstate__(self) -> dict[str, Any]:
        """Without engines and where weights lie: they hold copies for this process, and are made again."""
        return {**self.__dict__, "_engines": {}, "_hashed": None}

    def _engine(self, deterministic: bool | None) -> Engine:
        wanted = self.deterministic if deterministic is None else deterministic
        if wanted and any(type(parameter) is not nn.Parameter for parameter in self.model.parameters()):
            raise ValueError("deterministic=True works on plain weights, and these are quantized; leave it out")
        model, layout = self.model, self.tokenizer.layout
        key = (wanted, model.dtype, model.device)
        engine = self._engines.get(key)
        if engine is None or engine.model is not model or engine.layout is not layout:
            # One at a time: it may hold a copy of the weights, laid out for its products; it looks itself whether they changed.
            self._engines = {key: Engine(model, layout, deterministic=wanted, check_length=False)}
        return self._engines[key]

    @property
    def _name(self) -> str:
        return folder_name(Path(self.model.name_or_path or "")) or "unnamed"


def _modules(tokenizer: MultimodalTokenizer) -> list[nn.Module]:
    return [codec for codec in tokenizer.codecs.values() if isinstance(codec, nn.Module)]


@torch.no_grad()
def weights_fingerprint(model: EmuForCausalLM) -> str:
    """Return 16 hexadecimal digits that identify a transformer: its tensors' names, shapes, dtypes, and up to 256 numbers of each.

    Only a sample, because it is needed in every call and reading billions of numbers would take seconds; training changes all of them.
    """
    described, samples = [], []
    for name, weight in model.named_parameters():
        described.append(f"{name} {tuple(weight.shape)} {weight.dtype}")
        if type(weight) is nn.Parameter and not weight.is_meta:  # quantized weights are tensors of their own kind
            samples.append(weight.flatten()[:: max(1, weight.numel() // SAMPLES)].to("cpu", torch.float64))
    numbers = torch.cat(samples).numpy().tobytes() if samples else b""
    return hashlib.sha256("\n".join(described).encode() + numbers).hexdigest()[:16]
