"""Self-attention over chunks and cross-attention to text, side by side from one normed input (spec 3.9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from magi_core.config import MERGE_SLICES, DiTConfig
from magi_core.kernels import Attend, AttnRange
from magi_core.kernels.fused import layer_kernels
from magi_core.model.cache import KVCache
from magi_core.model.linear import Quant, make_linear
from magi_core.model.memo import KeysValues, Text
from magi_core.model.norms import Norm
from magi_core.model.products import SameInput, normed_products
from magi_core.model.rope import Rotation
from magi_core.model.tiles import in_tiles


@dataclass(frozen=True)
class Past:
    """Which finished chunks a forward pass reads, and which of its own it leaves behind."""

    cache: KVCache
    read_from: int
    """The oldest chunk read."""
    chunk: int
    """The number of the first current chunk; chunks [read_from, chunk) are read."""
    write_chunks: int
    """How many of the current chunks are stored."""


@dataclass(frozen=True)
class Context:
    """What all layers of one forward pass share. Tokens are flat: item by item, chunk by chunk."""

    attend: Attend
    condition: Tensor
    """[chunks, c], a row per chunk of every item."""
    rotation: Rotation
    """Of one item's tokens."""
    text: Text
    """The captions of all chunks."""
    self_ranges: Sequence[AttnRange]
    text_ranges: Sequence[AttnRange]
    past: Past | None


class QKV(nn.Module):
    """The projections that read the normed input: q, k, v of self-attention and qx, the cross-attention's query."""

    def __init__(self, config: DiTConfig, quant: Quant) -> None:
        super().__init__()
        dtype, hidden = config.params_dtype, config.hidden_size
        queries = config.num_attention_heads * config.kv_channels
        groups = config.num_query_groups * config.kv_channels
        self.layer_norm = Norm(hidden, config.layernorm_epsilon, dtype, one_plus=False)
        self.q = make_linear(hidden, queries, dtype, quant)
        self.qx = make_linear(hidden, queries, dtype, quant)
        self.k = make_linear(hidden, groups, dtype, quant)
        self.v = make_linear(hidden, groups, dtype, quant)
        self.same_input = SameInput(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [..., h] -> q, qx, k, v."""
        layers = self.q, self.qx, self.k, self.v
        q, qx, k, v = normed_products(x, self.layer_norm, layers, shared=self.same_input(layers))
        return q, qx, k, v


class Attention(nn.Module):
    """x [chunks, tokens, h] -> the outputs of self- and cross-attention, [chunks, tokens, heads * d] each, for ``project``."""

    def __init__(self, config: DiTConfig, layer: int, *, quantised: bool) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim, self.bands = config.kv_channels, config.rope_bands
        dtype = config.params_dtype
        outputs = 2 * config.num_attention_heads * config.kv_channels

        def head_norm(norm_dtype: torch.dtype) -> Norm:
            return Norm(config.kv_channels, config.layernorm_epsilon, norm_dtype, one_plus=config.apply_layernorm_1p)

        self.linear_qkv = QKV(config, "per_tensor" if quantised else "none")
        self.linear_kv_xattn = make_linear(
            config.text_hidden_size, 2 * config.num_query_groups * config.kv_channels, dtype
        )
        self.linear_proj = make_linear(
            outputs, config.hidden_size, dtype, "per_channel" if quantised else "none", wide=True
        )
        self.q_layernorm, self.k_layernorm = head_norm(torch.float32), head_norm(torch.float32)
        self.q_layernorm_xattn, self.k_layernorm_xattn = head_norm(dtype), head_norm(dtype)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        rotation = (factor.view(-1, x.shape[1], 1, self.head_dim) for factor in context.rotation)
        q, qx, k, v = (part.flatten(0, 1) for part in in_tiles(self._heads, x, *rotation))
        seen = self._self_attention(q, k, v, context)
        del q, k, v  # half of what a pass over a large video holds
        read = self._cross_attention(qx, context)
        return seen.view(*x.shape[:2], -1), read.view(*x.shape[:2], -1)

    def project(self, seen: Tensor, read: Tensor) -> Tensor:
        """Both outputs, interleaved and projected: float32 by a plain projection, the dtype of the rest by a quantised one (spec 4)."""
        slices = [torch.unflatten(part, -1, (MERGE_SLICES, -1)) for part in (seen, read)]
        out: Tensor = self.linear_proj(torch.stack(slices, dim=3).flatten(2))
        return out

    def _heads(self, x: Tensor, stay: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [chunks, tokens, h] -> q, qx, k, v [chunks, tokens, heads, d], normed and rotated; an item's chunks have one rotation."""
        q, qx, k, v = (torch.unflatten(part, -1, (-1, self.head_dim)) for part in self.linear_qkv(x))
        kernels = layer_kernels(x.device)
        q = kernels.place(q, self.q_layernorm.affine, stay, turn, self.bands)
        k = kernels.place(k, self.k_layernorm.affine, stay, turn, self.bands)
        return q, kernels.norm_heads(qx, self.q_layernorm_xattn.affine), k, v

    def _self_attention(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        if context.past is not None:
            past, chunks = context.past, len(context.condition)
            k, v = past.cache.join(
                self.layer, k, v, first=past.read_from, chunk=past.chunk, chunks=chunks, store=past.write_chunks
            )
        return context.attend(q, k, v, context.self_ranges)

    def _cross_attention(self, qx: Tensor, context: Context) -> Tensor:
        key, value = context.text.read(self.layer, self._text_keys_values)
        return context.attend(qx, key, value, context.text_ranges)

    def _text_keys_values(self, text: Tensor) -> KeysValues:
        """text [tokens, text_hidden_size] -> keys and values, each [tokens, groups, d]."""
        kv = self.linear_kv_xattn(text).unflatten(-1, (-1, 2 * self.head_dim))
        key, value = kv.split(self.head_dim, dim=-1)
        return self.k_layernorm_xattn(key).to(value.dtype), value
