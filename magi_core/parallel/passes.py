"""The passes of guidance on different ranks: a base model's three passes need nothing of each other within a step.

Notable:
- The pass in which each chunk stands alone is dealt out chunk by chunk, so two ranks share the three passes evenly.
- Only the pass with context stores keys and values; a chunk's are handed to the other ranks once in its life.
- Every rank adds the weighted velocities in one order, so the sum has the same bits on all of them and on a single device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from magi_core.cost.work import Work
from magi_core.denoise.guidance import Part, RunParts, run_parts
from magi_core.denoise.window import Window
from magi_core.model import KVCache, MagiDiT
from magi_core.parallel.collectives import Group

KINDS = ("text", "context", "alone")


def run_on(group: Group) -> RunParts:
    """``run_parts`` with the parts dealt out to a group, every member of which must make the same calls."""

    def run(model: MagiDiT, window: Window, parts: Sequence[Part], cache: KVCache) -> list[tuple[Part, Tensor]]:
        dealt = deal(parts, window, model, group.size)
        mine = [velocity for _, velocity in run_parts(model, window, dealt[group.rank], cache)]
        if window.write_chunks:
            context = next(rank for rank, some in enumerate(dealt) if any(part.kind == "context" for part in some))
            _hand_round(model, window, cache, context, group)
        found = []
        for rank, some in enumerate(dealt):
            for i, part in enumerate(some):
                shape = window.x.shape[1], len(part.chunks), window.x.shape[2] // len(window.times), *window.x.shape[3:]
                velocity = mine[i] if rank == group.rank else window.x.new_empty(shape)
                found.append((part, _broadcast(velocity, rank, group, "velocity")))
        return sorted(found, key=lambda item: KINDS.index(item[0].kind))

    return run


def deal(parts: Sequence[Part], window: Window, model: MagiDiT, ranks: int) -> list[list[Part]]:
    """Parts for each rank, the pass of chunks alone split by chunk: the costliest first, to who has least to do."""
    work, tokens = Work.of(model.config), _tokens(model, window)
    one = work.per_token * tokens
    pair = work.per_pair * tokens * tokens
    whole = sum(one + pair * (end - start) for start, end in window.kv_chunks)
    units = [(whole, part) for part in parts if part.kind != "alone"]
    for part in parts:
        if part.kind == "alone":
            units += [
                (one + pair, replace(part, chunks=(c,), weights=(w,)))
                for c, w in zip(part.chunks, part.weights, strict=True)
            ]
    loads = [0.0] * ranks
    dealt: list[list[Part]] = [[] for _ in range(ranks)]
    for cost, part in units:
        rank = loads.index(min(loads))
        loads[rank] += cost
        dealt[rank].append(part)
    return [_joined(some) for some in dealt]


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Chunks alone that one rank computes, as one pass."""
    alone = [part for part in parts if part.kind == "alone"]
    whole = [part for part in parts if part.kind != "alone"]
    if alone:
        whole.append(
            replace(
                alone[0],
                chunks=tuple(c for part in alone for c in part.chunks),
                weights=tuple(w for part in alone for w in part.weights),
            )
        )
    return whole


def _hand_round(model: MagiDiT, window: Window, cache: KVCache, source: int, group: Group) -> None:
    """Give the keys and values that rank ``source`` stored to all."""
    config = model.config
    shape = (_tokens(model, window), config.num_query_groups, 2 * config.kv_channels)
    for layer in range(config.num_layers):
        for chunk in range(window.first_chunk, window.first_chunk + window.write_chunks):
            if group.rank == source:
                _broadcast(cache.read(layer, chunk, chunk + 1)[0].contiguous(), source, group, "stored")
            else:
                rows = torch.empty(shape, dtype=config.params_dtype, device=window.x.device)
                cache.write(layer, chunk, _broadcast(rows, source, group, "stored"))


def _broadcast(tensor: Tensor, source: int, group: Group, kind: str) -> Tensor:
    if group.handle is not None:
        tensor = tensor.contiguous()
        if group.rank == source:
            group.meter.count(kind, (group.size - 1) * len(tensor), tensor)
        dist.broadcast(tensor, group.ranks[source], group=group.handle)
    return tensor


def _tokens(model: MagiDiT, window: Window) -> int:
    config, (frames, height, width) = model.config, window.x.shape[2:]
    chunks = len(window.times) * config.t_patch_size * config.patch_size**2
    return frames * height * width // chunks
