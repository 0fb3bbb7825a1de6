"""The transformer: a pre-norm decoder with rotary positions, SwiGLU and grouped-query attention, like Emu3 (arXiv 2409.18869, section 2.3).

Weights have the names of Llama and Emu3. The loss never materialises logits of the whole vocabulary; generation goes through
`forward_block` and `project`, which read one slice of the head.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from emu.families.language import read
from emu.model.attention import (
    Attend,
    DeviceStep,
    Linear,
    attend_by_row,
    attend_masked,
    attend_packed,
    attend_ragged,
    padding_mask,
    segment_mask,
)
from emu.model.block import Block, separate
from emu.model.cache import StaticCache
from emu.model.loss import next_token_loss
from emu.model.norm import RMSNorm
from emu.model.positions import EmuRotaryEmbedding, Rotary, segment_positions
from emu.model_config import EmuConfig
from emu_tokenizers.bars import without_bars
from emu_tokenizers.files import set_usual_mode

CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
"""What transformers calls the cache that a model takes and returns: `cache` from 5.24 on."""


class EmuPreTrainedModel(PreTrainedModel):
    """What transformers has to know about both classes below."""

    config: EmuConfig
    config_class = EmuConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = [CACHE]
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?vqmodel\.", r"rotary_emb\.inv_freq$"]


class EmuModel(EmuPreTrainedModel):
    """Embedding, blocks and final norm."""

    def __init__(self, config: EmuConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([Block(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = EmuRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_ids: Tensor, position_ids: Tensor, attend: Attend, linear: Linear = separate) -> Tensor:
        """Ids (B, S), positions (B or 1, S) -> hidden states (B, S, hidden) after the final norm."""
        x = self.embed_tokens(input_ids)
        return self.run(x, self.rotary_emb(x, position_ids), attend, linear)

    def run(self, x: Tensor, rotary: Rotary, attend: Attend | DeviceStep, linear: Linear) -> Tensor:
        """Embeddings (B, S, hidden) and angles (B or 1, S, 1, head_dim) -> hidden states (B, S, hidden)."""
        if self.training and self.config.embedding_dropout:
            x = F.dropout(x, self.config.embedding_dropout)
        for block in self.layers:
            x = block(x, rotary, attend, linear)
        return self.norm(x)


class EmuForCausalLM(EmuPreTrainedModel, GenerationMixin):
    """Transformer with a head over the whole vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: EmuConfig) -> None:
        super().__init__(config)
        self.model = EmuModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """Load a model from a folder or a hub repository; folders of released Emu3 and Emu3.5 models are read as they are.

        Args:
            pretrained_model_name_or_path: folder or repository.
            options: of transformers (`dtype`, `device_map`, `quantization_config`, ...), and `allow_pickle`, the names of pickled
                files that may be read.

        Raises:
            FileNotFoundError, ValueError: see `emu.families.language.read`.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **options)
        return read(super().from_pretrained, pretrained_model_name_or_path, args, options, tensor_shapes)

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
        """Write the model as transformers does, with file permissions according to the umask."""
        with without_bars():
            super().save_pretrained(save_directory, *args, **options)
        for file in Path(save_directory).glob("*.safetensors"):
            set_usual_mode(file)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        segment_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        return_logits: bool = False,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | float | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        return_hidden: bool = False,
    ) -> CausalLMOutputWithPast:
        """Compute hidden states, and from them the loss (with labels) or the logits (without, or with `return_logits`).

        Args:
            input_ids: (B, S) int64.
            labels: (B, S) int64, aligned with `input_ids` and shifted inside; `emu.packing.IGNORE_INDEX` is not predicted.
            loss_weights: (B, S); `loss_weights[b, i]` weights the prediction of token i.
            segment_ids: (B, S) int64, 0 for padding and 1..n for the documents of a packed row. Nothing is predicted or attended
                across them, and positions restart at each.
            attention_mask: (B, K), 1 for tokens and 0 for padding, or a mask (B, 1, S, K) as made by transformers.
            position_ids: (B, S); by default they count from the end of the cache, or from the start of each segment.
            past_key_values: a transformers cache, under its name before transformers 5.24.
            use_cache: return a cache; never while training with labels.
            logits_to_keep: compute logits of only the last N tokens; 0 means all.
            num_items_in_batch: divisor of the summed loss instead of this batch's own weights, for gradient accumulation.
            cache: a transformers cache, under its name since transformers 5.24.
            return_hidden: also return the hidden states, and the logits only with `return_logits`.

        Returns:
            `loss` (), `logits` (B, S, vocab_size), and the cache under transformers' name for it; `logits` is None exactly when labels
            are given or `return_hidden`, and not `return_logits`. With `return_hidden`, `hidden_states` is a tuple of one: (B, S, hidden)
            after the final norm.

        Raises:
            ValueError: shapes do not match, segments are combined with a cache or a padding mask, or two caches are given.
        """
        if cache is not None and past_key_values is not None:
            raise ValueError("the cache is given twice, as cache and as past_key_values; leave one out")
        cache = past_key_values if cache is None else cache
        self._check(input_ids, labels, loss_weights, segment_ids, attention_mask, cache)
        if cache is None and use_cache and labels is None:
            cache = DynamicCache(config=self.config)
        past = cache.get_seq_length() if cache is not None else 0
        if position_ids is None:
            position_ids = _positions(input_ids, segment_ids, past)
        attend = self._attend(input_ids, segment_ids, attention_mask, cache, past)
        hidden = self.model(input_ids, position_ids, attend)
        loss = logits = None
        if labels is not None:
            loss = next_token_loss(
                hidden,
                self.lm_head.weight,
                labels,
                weights=loss_weights,
                segment_ids=segment_ids,
                z_loss=self.config.z_loss,
                divisor=num_items_in_batch,
            )
        if return_logits or (labels is None and not return_hidden):
            logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        kept: dict[str, Any] = {CACHE: cache, "hidden_states": (hidden,) if return_hidden else None}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **kept)

    def _check(
        self,
        input_ids: Tensor,
        labels: Tensor | None,
        loss_weights: Tensor | None,
        segment_ids: Tensor | None,
        attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> None:
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (rows, tokens)")
        named = {"labels": labels, "loss_weights": loss_weights, "segment_ids": segment_ids}
        for name, value in named.items():
            if value is not None and value.shape != input_ids.shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, input_ids {tuple(input_ids.shape)}; they must agree"
                )
        if loss_weights is not None and labels is None:
            raise ValueError("loss_weights without labels; pass labels=input_ids to train on the tokens")
        if segment_ids is not None and (attention_mask is not None or cache is not None):
            raise ValueError(
                "segment_ids describe packed training rows; pass them without attention_mask (padding is segment 0) and without a cache"
            )

    def _attend(
        self, input_ids: Tensor, segment_ids: Tensor | None, mask: Tensor | None, cache: Cache | None, past: int
    ) -> Attend:
        rows, tokens = input_ids.shape
        dropout = self.config.attention_dropout if self.training else 0.0
        if mask is not None and mask.ndim == 4:
            return attend_masked(mask, dropout, cache)
        if mask is not None and mask.shape != (rows, past + tokens):
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}; expected {(rows, past + tokens)}: cached and new tokens"
            )
        if mask is not None and bool(mask.all()):
            mask = None
        if cache is not None:
            unwritten = (
                cache.get_mask_sizes(tokens, 0)[0] - past - tokens
            )  # caches of a fixed size return all their slots
            if mask is None and tokens == 1 and not unwritten:
                return attend_masked(None, dropout, cache)
            known = mask if mask is not None else torch.ones(1, past + tokens, device=input_ids.device)
            return attend_masked(F.pad(padding_mask(known, tokens), (0, unwritten)), dropout, cache)
        if mask is not None:
            segment_ids = mask.to(torch.int64)
        if dropout:
            return attend_masked(
                segment_mask(segment_ids if segment_ids is not None else torch.ones_like(input_ids)), dropout
            )
        return attend_packed(segment_ids)

    @torch.no_grad()
    def forward_block(
        self, input_ids: Tensor, cache: StaticCache, linear: Linear = separate, *, by_row: bool = False
    ) -> Tensor:
        """Run the next tokens of every row after what the cache holds; prefill, decode step and speculative window alike.

        Args:
            input_ids: (R, m) int64. A slot that does not exist for its row (see `StaticCache`) may hold any valid id, and so may the end
                of a row of which the cache expects fewer tokens (`StaticCache.expect`).
            cache: of R rows with room for m more tokens; holds them afterwards.
            linear: how products with weights are done.
            by_row: compute attention row by row, so that a row does not depend on the others to the last bit.

        Returns:
            (R, m, hidden) after the final norm; zeros where a row has fewer tokens.

        Raises:
            ValueError: another number of rows than the cache has, or no room.
        """
        rows, tokens = input_ids.shape
        hidden = self.forward_tokens(input_ids, cache, linear, by_row=by_row)
        if len(hidden) < rows * tokens:
            places = [row * tokens + place for row, count in enumerate(cache.counts) for place in range(count)]
            padded = hidden.new_zeros(rows * tokens, hidden.shape[-1])
            hidden = padded.index_copy_(0, torch.tensor(places, device=hidden.device), hidden)
        return hidden.unflatten(0, (rows, tokens))

    @torch.no_grad()
    def forward_tokens(
        self, input_ids: Tensor, cache: StaticCache, linear: Linear = separate, *, by_row: bool = False
    ) -> Tensor:
        """`forward_block` without padding: (T, hidden) of the tokens that there are, one row's after the other's."""
        rows, tokens = input_ids.shape
        if rows != cache.rows:
            raise ValueError(f"input_ids has {rows} rows, the cache {cache.rows}")
        cache.begin(tokens)
        places = cache.packed
        if by_row:
            attend = attend_by_row(cache)
        else:
            attend = attend_masked(cache.mask(tokens), cache=cache) if places is None else attend_ragged(cache)
        rotary = cache.rotary(self.model.rotary_emb, tokens)
        ids = input_ids if places is None else input_ids.flatten()[places][None]
        hidden = self.model.run(self.model.embed_tokens(ids), rotary, attend, linear)
        cache.commit()
        return hidden.flatten(0, 1)

    @torch.no_grad()
    def project(self, hidden: Tensor, first: int = 0, count: int | None = None) -> Tensor:
        """Logits of a range of ids: hidden (..., hidden) -> (..., count), ids `first` to `first + count - 1`, all by default."""
        count = self.config.vocab_size - first if count is None else count
        if not 0 <= first < first + count <= self.config.vocab_size:
            raise ValueError(f"ids {first}..{first + count - 1} are outside the vocabulary of {self.config.vocab_size}")
        return F.linear(hidden, self.lm_head.weight[first : first + count])


def tensor_shapes(config: EmuConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of an `EmuForCausalLM`, without memory for them."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in EmuForCausalLM(config).state_dict().items()}


def _positions(input_ids: Tensor, segment_ids: Tensor | None, past: int) -> Tensor:
    """(B or 1, S): from the start of each segment, or after what a cache holds."""
    if segment_ids is not None:
        return segment_positions(segment_ids)
    return torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]
