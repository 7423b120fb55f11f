# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Range attention with queries and keys in 8 bits: tensor cores multiply int8 twice as fast as bfloat16. Lossy.

Notable:
- Every row of every head has a scale of its own, so it does not matter where ranges begin. Weights and values stay as they are.
- Keys lie around a mean that is large beside their differences. It is taken off before they are rounded, which adds the same number to all
  scores of a row: nothing to the softmax, and a known share to its log-sum-exp (SageAttention, Zhang et al. 2024, section 4.2).
- The products run in the kernel of ``triton_ranges``; here is what goes in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from magi_core.kernels.partial import Partial
from magi_core.kernels.ranges import AttnRange
from magi_core.kernels.triton_ranges import Tile, launch


def attend_triton_int8(
    q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange], tile: Tile | None = None
) -> Partial:
    """About the values of ``attend_lse``: of standard normal inputs, within 0.05. As ``attend_triton`` otherwise."""
    mean = key_mean(k, ranges)
    (q_int8, q_scale, share), (k_int8, k_scale, _) = _quantise(q, mean, False), _quantise(k, mean, True)
    out, lse = launch(q_int8, k_int8, v, ranges, tile, (q_scale, k_scale))
    return out, lse + share / q.shape[2] ** 0.5


def key_mean(k: Tensor, ranges: Sequence[AttnRange]) -> Tensor:
    """[Hk, d] float32: the mean of the longest range's keys. Rows in no range, which may hold anything, have no part in it."""
    seen = [r for r in ranges if r.q_end > r.q_start and r.k_end > r.k_start]
    if not seen:
        return k.new_zeros(k.shape[1:], dtype=torch.float32)
    longest = max(seen, key=lambda r: r.k_end - r.k_start)
    return k[longest.k_start : longest.k_end].mean(0, dtype=torch.float32)


def _quantise(x: Tensor, mean: Tensor, subtract: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x [L, H, d] as int8, its scales [L, H], and its products with the mean of its key head (unless that is subtracted)."""
    x = x if x.stride(2) == 1 else x.contiguous()
    rows, heads, d = x.shape
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale, share = torch.empty(2, rows, heads, device=x.device)
    if rows:
        block, block_d = triton.next_power_of_2(heads), triton.next_power_of_2(d)
        _quantise_row[(rows,)](
            *(x, mean, out, scale, share, *x.stride()[:2]),
            SUBTRACT=subtract,
            HEADS=heads,
            SHARE=heads // len(mean),
            D=d,
            BLOCK=block,
            BLOCK_D=block_d,
            num_warps=4 if block * block_d <= 4096 else 8,
        )
    return out, scale, share


@triton.jit
def _quantise_row(
    x_at, mean_at, out_at, scale_at, share_at, x_row, x_head,
    SUBTRACT: tl.constexpr, HEADS: tl.constexpr, SHARE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (row): all its heads."""
    row = tl.program_id(0).to(tl.int64)
    head, dim = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    seen = (head < HEADS)[:, None] & (dim < D)[None, :]
    x = tl.load(x_at + row * x_row + head[:, None] * x_head + dim[None, :], mask=seen, other=0.0).to(tl.float32)
    mean = tl.load(mean_at + (head // SHARE)[:, None] * D + dim[None, :], mask=seen, other=0.0)
    if SUBTRACT:
        x -= mean
    else:
        tl.store(share_at + row * HEADS + head, tl.sum(x * mean, 1), mask=head < HEADS)
    scale = tl.maximum(tl.max(tl.abs(x), 1) / 127.0, 1e-12)  # rows of zeros have a scale too
    tl.store(scale_at + row * HEADS + head, scale, mask=head < HEADS)
    whole = tl.floor(x / scale[:, None] + 0.5).to(tl.int8)
    tl.store(out_at + (row * HEADS + head[:, None]) * D + dim[None, :], whole, mask=seen)
