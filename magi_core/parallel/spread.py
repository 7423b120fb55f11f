"""The transformer's layers with their tokens spread over ranks.

What surrounds the layers is small and computed by everybody, each layer is computed by all together, and everybody gets the result. The
layers themselves do not know, wherever their weights are: a cell stands where a chunk stood, and the ``attend`` that they are given talks
to the other ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from magi_core.kernels import Attend, AttendLse, AttnRange
from magi_core.model.attention import Context, Past
from magi_core.model.dit import MagiDiT
from magi_core.model.layers import Layer, Layers
from magi_core.model.rope import Rotation
from magi_core.parallel.attention import attend_shares
from magi_core.parallel.collectives import Group, all_gather
from magi_core.parallel.shard import Layout, lay_out, local_ranges, share
from magi_core.parallel.slices import Span
from magi_core.parallel.ulysses import attend_heads

Exchange = Literal["keys", "heads"]
"""What is exchanged in a layer: keys and values for queries that stay (group-cast), or tokens for heads (Ulysses)."""


def spread(
    model: MagiDiT, numbers: range, group: Group, exchange: Exchange, stages: int, attend_lse: AttendLse
) -> None:
    """From now on the model's layers, which have these numbers, are computed by the whole group; every rank must make the same calls."""
    blocks = model.videodit_blocks
    layers = blocks.layers
    del blocks.layers
    blocks.layers = SpreadLayers(layers, numbers, group, exchange, stages, attend_lse)


class SpreadLayers:
    """``Layers`` whose first one takes, and whose last one gives, x [chunks, tokens, h], the same on every rank.

    Between them hidden states are this rank's cells [cells, tokens of a cell, h].
    """

    on_host = False  # keys and values are read where the cache holds them

    def __init__(
        self, layers: Layers, numbers: range, group: Group, exchange: Exchange, stages: int, attend_lse: AttendLse
    ) -> None:
        self.layers, self.numbers = layers, numbers
        self.group, self.exchange, self.stages, self.attend_lse = group, exchange, stages, attend_lse

    def on(self, device: torch.device) -> Iterator[Layer]:
        spreading = Spreading(self)
        for number, layer in zip(self.numbers, self.layers.on(device), strict=True):
            yield partial(spreading.compute, number, layer)


class Spreading:
    """One pass."""

    def __init__(self, layers: SpreadLayers) -> None:
        self.layers, self.group = layers, layers.group

    def compute(self, number: int, layer: Layer, x: Tensor, context: Context) -> Tensor:
        """Layer ``number``; the first one begins the pass, the last one ends it."""
        if number == self.layers.numbers[0]:
            x = self._begin(x, context)
        attend = TokenAttend(
            self.layers, number, self.layout, self.ranges, context.past, self.tokens, self.before, context.attend
        )
        x = layer(x, replace(self.mine, attend=_either(attend, context.attend, self.ranges)))
        return self._gather(x) if number == self.layers.numbers[-1] else x

    def _begin(self, x: Tensor, context: Context) -> Tensor:
        """This rank's cells of x, and what the layers share, as it is for cells."""
        past, rank = context.past, self.group.rank
        chunks, self.tokens = x.shape[:2]
        self.before = (past.chunk - past.read_from) * self.tokens if past else 0
        self.ranges = tuple(context.self_ranges)
        write = past.write_chunks if past else 0
        self.layout = lay_out(self.ranges, chunks, self.tokens, self.group.size, self.before, write)
        rows = self.layout.rows(rank).to(x.device)
        cells = self.layout.bins[rank]
        self.mine = replace(
            context,
            condition=context.condition[[self.layout.chunk_of(cell) for cell in cells]],
            rotation=Rotation(*(factor[rows % len(factor)] for factor in context.rotation)),
            text_ranges=local_ranges(context.text_ranges, self.layout.local(rank), [_all_keys(context.text_ranges)]),
            self_ranges=self.ranges,
            past=None,
        )
        return x.flatten(0, 1)[rows].view(len(cells), self.layout.cell_tokens, -1)

    def _gather(self, hidden: Tensor) -> Tensor:
        """All ranks' rows, in their order."""
        whole = hidden.new_empty(self.layout.chunks * self.tokens, hidden.shape[2])
        for rank, part in enumerate(all_gather(hidden.flatten(0, 1), self.group)):
            self.layout.put(whole, part, rank)
        return whole.view(self.layout.chunks, self.tokens, -1)


@dataclass(frozen=True, eq=False)
class TokenAttend:
    """Self-attention of one layer, which all ranks compute together."""

    layers: SpreadLayers
    layer: int
    layout: Layout
    ranges: tuple[AttnRange, ...]
    """The whole pass's."""
    past: Past | None
    tokens: int
    """Of a chunk."""
    before: int
    """Rows of the past."""
    attend: Attend
    """The model's own."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange]) -> Tensor:
        past, group, layout = self.past, self.layers.group, self.layout
        write = past.write_chunks if past else 0
        earlier = past.cache.read(self.layer, past.read_from, past.chunk) if past else []
        stored = k.new_empty(write * self.tokens, k.shape[1], 2 * k.shape[2]) if write else None
        if self.layers.exchange == "heads":
            out = attend_heads(q, k, v, layout, ranges, group, past=earlier, stored=stored, attend=self.attend)
        else:
            mine = share(self.ranges, layout, group.rank, self.layers.stages, self.before, write)
            out = attend_shares(q, k, v, mine, group, past=earlier, stored=stored, attend_lse=self.layers.attend_lse)
        if past and stored is not None:
            for i, rows in enumerate(torch.split(stored, self.tokens)):
                past.cache.write(self.layer, past.chunk + i, rows)
        return out


def _either(tokens: Attend, text: Attend, of_tokens: Sequence[AttnRange]) -> Attend:
    """A layer calls one ``attend`` for both attentions; the ranges say which it is."""

    def attend(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange]) -> Tensor:
        return (tokens if ranges is of_tokens else text)(q, k, v, ranges)

    return attend


def _all_keys(ranges: Sequence[AttnRange]) -> Span:
    return 0, max(r.k_end for r in ranges)
