# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Our own range attention kernel, in Triton: every range, mask type and head of a layer in one launch, with the log-sum-exp.

Notable:
- Work is cut into tiles of query rows, each with the list of key runs that it reads, so rows may be in any number of ranges
  without partial results in memory. Heavy tiles start first.
- Query heads that share a key head are rows of one tile (GQA packing): keys and values are read once for all of them, and a tile
  is full even where a range has few queries.
- Each of the four types is two offsets (``ranges.bounds``). Key blocks that all rows of a tile see skip the comparison.
- Softmax is running (Milakov and Gimelshein 2018; FlashAttention-2, Dao 2023), in powers of two, in float32.

Forward only. It is meant for small ranges, where one launch replaces many, and for partial results; for long ranges the vendor's
kernels are faster. This module needs the package ``triton`` and is imported by those who want it. With TRITON_INTERPRET=1 set before
triton is imported it runs on the CPU, for tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from magi_core.kernels.partial import Partial
from magi_core.kernels.ranges import AttnRange, bounds, segments


class Tile(NamedTuple):
    """How much one program works on at once."""

    rows: int
    """Query rows times query heads of a key head; a power of two, at least 16."""
    keys: int
    """Keys per step; a power of two, at least 16."""
    warps: int
    stages: int


SMALL, LARGE = Tile(64, 64, 4, 2), Tile(128, 64, 8, 3)
FEW_ROWS = 64
"""Rows of a tile up to which the small one has less waste."""
LEAST_PRODUCT = {False: 16, True: 32}
"""Values of a row that tensor cores multiply at once, at least; True: in 8 bits."""


def attend_triton(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange], tile: Tile | None = None) -> Partial:
    """The same values as ``attend_lse``; float32, float16 or bfloat16, head dims 1 to 256, not differentiable."""
    return launch(q, k, v, ranges, tile, None)


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ranges: Sequence[AttnRange],
    tile: Tile | None,
    scales: tuple[Tensor, Tensor] | None,
) -> Partial:
    """``attend_triton``; scales: what the rows of q and k in int8 stand for, [Lq, Hq] and [Lk, Hk] float32. The dtype is that of v."""
    share, d = q.shape[1] // k.shape[1], q.shape[2]
    longest = max((r.q_end - r.q_start for r in ranges), default=0)
    tile = tile or (SMALL if longest * share <= FEW_ROWS or v.dtype == torch.float32 else LARGE)
    tile = tile._replace(rows=max(tile.rows, triton.next_power_of_2(share)))
    tiles, parts, covered = _plan(tuple(ranges), len(q), len(k), tile.rows // share, q.device)
    out = (torch.empty_like if covered else torch.zeros_like)(q, dtype=v.dtype)
    lse = torch.full(q.shape[:2], -torch.inf, device=q.device)
    if len(tiles):
        q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
        strides = [side for x in (q, k, v, out) for side in x.stride()[:2]]
        _attend_tile[(len(tiles), k.shape[1])](
            *(q, k, v, out, lse, *(scales or (None, None)), tiles, parts, math.log2(math.e) / math.sqrt(d), *strides),
            SHARE=share,
            D=d,
            BLOCK_D=max(LEAST_PRODUCT[scales is not None], triton.next_power_of_2(d)),
            ROWS=tile.rows,
            KEYS=tile.keys,
            UPCAST=interpreted() and v.dtype == torch.bfloat16,
            INT8=scales is not None,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out, lse


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU. (Its products of bfloat16 are wrong there.)"""
    return not isinstance(_attend_tile, triton.JITFunction)


@lru_cache(maxsize=8)
def _plan(
    ranges: tuple[AttnRange, ...], q_rows: int, k_rows: int, step: int, device: torch.device
) -> tuple[Tensor, Tensor, bool]:
    """(tiles [n, 4]: first row, rows, first part, end of parts; parts [m, 4]: first key, end of keys, low, high; all rows?).

    int32, on the device. All layers of a forward pass have the same ranges, so the last plans are kept.
    """
    tiles: list[tuple[int, int, int, int]] = []
    parts: list[tuple[int, int, int, int]] = []
    cost: list[int] = []
    runs = segments(ranges, q_rows, k_rows)
    for run in runs:
        first = len(parts)
        parts += [(r.k_start, r.k_end, *bounds(r)) for r in run.parts]
        for start in range(run.start, run.end, step):
            tiles.append((start, min(step, run.end - start), first, len(parts)))
            cost.append(sum(r.k_end - r.k_start for r in run.parts))
    order = sorted(range(len(tiles)), key=lambda i: -cost[i])
    table = torch.tensor([tiles[i] for i in order], dtype=torch.int32)
    covered = sum(run.end - run.start for run in runs) == q_rows
    return table.to(device), torch.tensor(parts, dtype=torch.int32).to(device), covered


@triton.jit
def _attend_keys(
    q, acc, total, top, k_at, v_at, k_scale_at, k_row, v_row, k_heads, first, end, low, high, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """The running softmax over the keys [first, end): every row sees [low, high) of them, or all where not MASKED."""
    dim = tl.arange(0, BLOCK_D)
    for start in range(first, end, KEYS):
        key = start + tl.arange(0, KEYS)
        real = (key < end)[:, None] & (dim < D)[None, :] if MASKED else (dim < D)[None, :]
        row = key.to(tl.int64)[:, None]
        keys = tl.load(k_at + row * k_row + dim[None, :], mask=real, other=0.0)
        values = tl.load(v_at + row * v_row + dim[None, :], mask=real, other=0.0)
        if UPCAST:
            values = values.to(tl.float32)
        if INT8:
            k_scale = tl.load(k_scale_at + key.to(tl.int64) * k_heads, mask=key < end, other=0.0)
            scores = tl.dot(q, tl.trans(keys), out_dtype=tl.int32).to(tl.float32) * scale[:, None] * k_scale[None, :]
        else:
            keys = keys.to(q.dtype)
            scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        if MASKED:
            seen = (key[None, :] >= low[:, None]) & (key[None, :] < tl.minimum(high, end)[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(highest == float("-inf"), 0.0, highest)  # a row may have seen nothing so far
        weights = tl.exp2(scores - base[:, None])
        keep = tl.exp2(top - base)
        total = total * keep + tl.sum(weights, 1)
        acc = tl.dot(weights.to(values.dtype), values, acc * keep[:, None], input_precision="ieee")
        top = highest
    return acc, total, top


@triton.jit
def _attend_tile(
    q_at, k_at, v_at, out_at, lse_at, q_scale_at, k_scale_at, tiles, parts, scale,
    q_row, q_head, k_row, k_head, v_row, v_head, out_row, out_head,
    SHARE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
    INT8: tl.constexpr,
):  # fmt: skip
    """Program (tile, key head): ROWS / SHARE query rows, with the SHARE query heads of the key head."""
    tile, head = tl.program_id(0), tl.program_id(1)
    start, count = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    part, end_of_parts = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    lane, dim = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    row, q_heads = start + lane // SHARE, head * SHARE + lane % SHARE
    live = lane < count * SHARE
    place = live[:, None] & (dim < D)[None, :]
    q = tl.load(
        q_at + row.to(tl.int64)[:, None] * q_row + q_heads[:, None] * q_head + dim[None, :], mask=place, other=0.0
    )
    per_row = row.to(tl.int64) * (tl.num_programs(1) * SHARE) + q_heads
    if INT8:
        scale = tl.load(q_scale_at + per_row, mask=live, other=0.0) * scale
        k_scale_at += head
    elif UPCAST:
        q = q.to(tl.float32)
    k_at += head * k_head
    v_at += head * v_head
    acc = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    for p in range(part, end_of_parts):
        k_start, k_end = tl.load(parts + p * 4), tl.load(parts + p * 4 + 1)
        low, high = tl.load(parts + p * 4 + 2), tl.load(parts + p * 4 + 3)
        first, end = tl.maximum(k_start, start + low), tl.minimum(k_end, start + count - 1 + high)  # any row
        all_first, all_end = tl.maximum(k_start, start + count - 1 + low), tl.minimum(k_end, start + high)  # every row
        head_end = tl.minimum(end, first + (all_first - first + KEYS - 1) // KEYS * KEYS)
        tail = head_end + tl.maximum(all_end - head_end, 0) // KEYS * KEYS
        acc, total, top = _attend_keys(
            q, acc, total, top, k_at, v_at, k_scale_at, k_row, v_row, tl.num_programs(1), first, head_end, row + low, row + high, scale, D, BLOCK_D, KEYS, True, UPCAST, INT8
        )  # fmt: skip
        acc, total, top = _attend_keys(
            q, acc, total, top, k_at, v_at, k_scale_at, k_row, v_row, tl.num_programs(1), head_end, tail, row + low, row + high, scale, D, BLOCK_D, KEYS, False, UPCAST, INT8
        )  # fmt: skip
        acc, total, top = _attend_keys(
            q, acc, total, top, k_at, v_at, k_scale_at, k_row, v_row, tl.num_programs(1), tail, end, row + low, row + high, scale, D, BLOCK_D, KEYS, True, UPCAST, INT8
        )  # fmt: skip
    out = (acc / total[:, None]).to(out_at.dtype.element_ty)
    out_rows = out_at + row.to(tl.int64)[:, None] * out_row + q_heads[:, None] * out_head
    tl.store(out_rows + dim[None, :], out, mask=place)
    lse = (top + tl.log2(total)) * 0.6931471805599453
    tl.store(lse_at + per_row, lse, mask=live)
