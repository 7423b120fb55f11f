"""Range attention as plain matrix products, for training batches.

Two things that ``kernels.attend`` leaves to a backend matter in training on a CPU. The backward of torch's fused bfloat16 attention
takes about three times as long as products and a softmax at magi-nano's sizes. And ranges are batched there when they have one
shape, while hardly two captions of a batch are equally long: here they share one call, shorter ones masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from magi_core.kernels import AttnRange

MOST_SHAPES = 2
"""Up to so many different key lengths each get a call of their own; more are padded to the longest."""


def attend_products(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange]) -> Tensor:
    """Equal to ``kernels.attend`` up to rounding: q [Lq, Hq, d], k and v [Lk, Hk, d] -> [Lq, Hq, d].

    The ranges follow each other in q, all have equally many queries, and none is without keys: ValueError otherwise.
    """
    rows = ranges[0].q_end
    if any((r.q_start, r.q_end) != (i * rows, (i + 1) * rows) for i, r in enumerate(ranges)) or len(
        ranges
    ) * rows != len(q):
        raise ValueError("the ranges of a training batch must cut the queries into equal parts, in order")
    lengths = torch.tensor([r.k_end - r.k_start for r in ranges])
    if lengths.min() < 1:
        raise ValueError("an attention range without keys")
    starts = torch.tensor([r.k_start for r in ranges])
    blocks = (q * q.shape[-1] ** -0.5).reshape(-1, rows, *q.shape[1:])
    shapes = sorted(set(lengths.tolist()))
    if len(shapes) == 1 or len(shapes) > MOST_SHAPES:
        return _blocks(blocks, k, v, starts, lengths).flatten(0, 1)
    groups = [(lengths == shape).nonzero().squeeze(1) for shape in shapes]
    parts = [_blocks(blocks[g.to(q.device)], k, v, starts[g], lengths[g]) for g in groups]
    return torch.cat(parts)[torch.cat(groups).argsort().to(q.device)].flatten(0, 1)


def _blocks(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """q [n, rows, Hq, d] reads k and v [Lk, Hk, d] from ``starts`` [n], ``lengths`` [n] of them -> [n, rows, Hq, d]."""
    n, rows, heads, dim = q.shape
    column = torch.arange(int(lengths.max()))
    real = column < lengths[:, None]
    index = torch.where(real, starts[:, None] + column, 0).flatten().to(k.device)
    keys, values = (t.index_select(0, index).view(*real.shape, -1, dim).transpose(1, 2) for t in (k, v))
    queries = q.view(n, rows, keys.shape[1], -1, dim).transpose(1, 2).flatten(2, 3)  # [n, Hk, rows * Hq/Hk, d]
    scores = queries @ keys.transpose(2, 3)
    if not real.all():
        scores = scores + torch.where(real, 0.0, -torch.inf).to(scores)[:, None, None]
    out = scores.softmax(-1).to(values.dtype) @ values
    merged: Tensor = out.view(n, keys.shape[1], rows, -1, dim).transpose(1, 2).reshape(n, rows, heads, dim)
    return merged
