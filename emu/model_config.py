"""Configuration of the transformer."""

import dataclasses
import difflib
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from emu_tokenizers.vision.config import value_errors


@value_errors
@strict
class EmuConfig(PreTrainedConfig):
    """Architecture of an `EmuForCausalLM`. The defaults are Emu3's (arXiv 2409.18869, table 3).

    Args:
        vocab_size: number of ids; rows of the embedding and of the head.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward layer.
        num_hidden_layers: number of blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads, a divisor of the query heads, and equal to them by default.
        head_dim: width of a head; `hidden_size / num_attention_heads` by default.
        max_position_embeddings: longest sequence the model is meant for.
        rms_norm_eps: added to the mean square in norms.
        rope_theta: base of the rotary position embedding.
        rope_parameters: transformers' table of rotary settings (`rope_type`, `factor`, ...); its `rope_theta` overrides the field.
        qk_norm: normalise queries and keys per head, as in Emu3.5.
        z_loss: weight of the squared log-partition in the loss.
        attention_dropout: dropout of attention probabilities.
        residual_dropout: dropout of both branches of a block.
        embedding_dropout: dropout of token embeddings.
        initializer_range: standard deviation of linear and embedding weights at initialisation.
        tie_word_embeddings: whether the head shares the embedding's weights.
        vocabulary: table of id ranges (`Vocabulary.to_dict`) that the model was trained with, if known.

    Raises:
        ValueError: a value has the wrong type or is out of range, sizes do not match, or a name looks like a
            misspelt field.
    """

    model_type = "emu"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 184622
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 9216
    rms_norm_eps: float = 1e-5
    rope_theta: float | int = 1_000_000.0
    rope_parameters: dict[str, Any] | None = None
    qk_norm: bool = False
    z_loss: float | int = 0.0
    attention_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    vocabulary: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelt(kwargs)
        self._check_positive()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self._check_divisible("hidden_size", "num_attention_heads")
            self.head_dim = self.hidden_size // self.num_attention_heads
        self.rope_parameters = dict(self.rope_parameters or {})
        self.rope_theta = float(self.rope_parameters.get("rope_theta") or self.rope_theta)
        super().__post_init__(**kwargs)

    def _refuse_misspelt(self, unknown: dict[str, Any]) -> None:
        fields = [field.name for field in dataclasses.fields(self)]
        for name in unknown:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.88)
            if near:
                raise ValueError(f"EmuConfig has no field {name!r}; did you mean {near[0]!r}?")

    def _check_positive(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; expected a positive integer")

    def _check_divisible(self, name: str, divisor: str) -> None:
        value, by = getattr(self, name), getattr(self, divisor)
        if value % by:
            raise ValueError(f"{name} {value} is not a multiple of {divisor} {by}; change one of them")

    def validate_architecture(self) -> None:
        """What a strict configuration checks after the types of its fields."""
        self._check_divisible("num_attention_heads", "num_key_value_heads")
        if self.head_dim % 2:  # type: ignore[operator]
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions turn pairs, so it must be even")
        for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 <= p < 1")
        for name in ("z_loss", "rms_norm_eps", "initializer_range", "rope_theta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number that is not negative")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            given = getattr(self, name)
            for index in given if isinstance(given, list) else [given]:
                if index is not None and not 0 <= index < self.vocab_size:
                    raise ValueError(f"{name} {index} is outside the vocabulary of {self.vocab_size} ids")
        if self.vocabulary is not None and self.vocabulary.get("size") != self.vocab_size:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, the vocabulary's size {self.vocabulary.get('size')}; they must agree"
            )
