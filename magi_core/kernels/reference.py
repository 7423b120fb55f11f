"""Range attention as the formula says it, one range and one head at a time, in float32: what the kernels are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from magi_core.kernels.attention import AttnRange


def attend_reference(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange]) -> Tensor:
    """The same value as ``attend``: q [Lq, Hq, d], k and v [Lk, Hk, d] -> [Lq, Hq, d]."""
    out = torch.zeros_like(q, dtype=torch.float32)
    share = q.shape[1] // k.shape[1]
    for q_start, q_end, k_start, k_end in ranges:
        if k_end <= k_start:
            continue
        for head in range(q.shape[1]):
            keys, values = k[k_start:k_end, head // share].float(), v[k_start:k_end, head // share].float()
            scores = q[q_start:q_end, head].float() @ keys.T / q.shape[2] ** 0.5
            out[q_start:q_end, head] = torch.softmax(scores, dim=-1) @ values
    return out.to(q.dtype)
