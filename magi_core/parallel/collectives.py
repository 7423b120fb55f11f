"""Group-cast and group-reduce: rows go to the ranks that need them, and what was computed for them comes back.

Both are one all-to-all with uneven splits, so that no byte is sent that nobody reads. Group-reduce is the exact transpose of group-cast,
and each is the other's derivative. A ``Meter`` counts what leaves a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from magi_core.parallel.slices import Span


@dataclass
class Meter:
    """Bytes that a rank sent to others, by kind of exchange."""

    sent: dict[str, int] = field(default_factory=dict)

    def count(self, kind: str, rows: int, like: Tensor) -> None:
        """Add ``rows`` rows of a tensor [n, ...]."""
        row = like[0].numel() if len(like) else like.numel()
        self.sent[kind] = self.sent.get(kind, 0) + rows * row * like.element_size()

    @property
    def total(self) -> int:
        return sum(self.sent.values())


@dataclass(frozen=True)
class Group:
    """Some of the processes, which take part in every exchange together."""

    handle: dist.ProcessGroup | None
    """torch's; None for a single process."""
    ranks: tuple[int, ...]
    """The members, as the world counts them."""
    rank: int
    """This process's place among them."""
    meter: Meter

    @property
    def size(self) -> int:
        return len(self.ranks)


class Exchange:
    """Rows on their way: ``wait`` gives what arrives."""

    def __init__(self, work: Any, sent: Tensor, arriving: Tensor) -> None:
        self._work, self._sent, self._arriving = work, sent, arriving

    def wait(self) -> Tensor:
        if self._work is not None:
            self._work.wait()
        return self._arriving


def start_cast(rows: Tensor, send: Sequence[Sequence[Span]], receive: Sequence[int], group: Group) -> Exchange:
    """Begin a group-cast without waiting; not differentiable. Arguments and result as ``group_cast``."""
    leaving = torch.cat([rows[:0], *(rows[a:b] for spans in send for a, b in spans)])
    return _exchange(leaving, [_length(spans) for spans in send], receive, group, "cast")


def group_cast(rows: Tensor, send: Sequence[Sequence[Span]], receive: Sequence[int], group: Group) -> Tensor:
    """rows [n, ...]: the spans send[i] go to rank i of the group; returns what arrives [sum(receive), ...], source by source.

    Spans may overlap, and go to several ranks. receive[i] is the length of what rank i sends here. Differentiable: the gradient
    is ``group_reduce`` of the gradients.
    """
    out: Tensor = _Cast.apply(rows, send, receive, group)  # type: ignore[no-untyped-call]
    return out


def group_reduce(
    parts: Tensor, send: Sequence[Sequence[Span]], receive: Sequence[int], rows: int, group: Group
) -> Tensor:
    """The transpose of ``group_cast``: what was computed for the rows that arrived goes back and is added up, [rows, ...].

    parts [sum(receive), ...], laid out like the result of the cast with the same send and receive. Differentiable.
    """
    out: Tensor = _Reduce.apply(parts, send, receive, rows, group)  # type: ignore[no-untyped-call]
    return out


def group_merge(
    out: Tensor, lse: Tensor, send: Sequence[Sequence[Span]], receive: Sequence[int], rows: int, group: Group
) -> tuple[Tensor, Tensor]:
    """``group_reduce`` of partial attention: queries went to where keys are, and come back as one output [rows, H, d] and lse [rows, H].

    out [sum(receive), H, d] and lse [sum(receive), H], of one floating type, are what those that arrived saw there, -inf where that is
    nothing. The parts of a row must be of different keys. Differentiable.
    """
    spans = [[end - start for start, end in to] for to in send]
    ends = list(accumulate((length for to in spans for length in to), initial=0))
    places = iter(pairwise(ends))
    apart = [[next(places) for _ in to] for to in spans]  # every part in a row of its own
    back = group_reduce(torch.cat([out, lse[..., None]], dim=-1), apart, receive, ends[-1], group)
    part, its = back[..., :-1], back[..., -1]
    none = torch.arange(0, device=out.device)
    row = torch.cat([none, *(torch.arange(a, b, device=out.device) for to in send for a, b in to)])
    top = torch.full((rows, *its.shape[1:]), torch.finfo(its.dtype).min, dtype=its.dtype, device=its.device)
    top = top.index_reduce(0, row, its.detach(), "amax")
    weight = (its - top[row]).exp()
    total = torch.zeros_like(top).index_add(0, row, weight)
    seen = total.clamp_min(torch.finfo(total.dtype).tiny)
    merged = out.new_zeros(rows, *part.shape[1:]).index_add(0, row, weight[..., None] * part) / seen[..., None]
    return merged, torch.where(total > 0, top + seen.log(), -torch.inf)


def all_gather(rows: Tensor, group: Group) -> list[Tensor]:
    """Every member's rows, which have one shape everywhere."""
    if group.handle is None:
        return [rows]
    parts = [torch.empty_like(rows) for _ in range(group.size)]
    group.meter.count("gather", len(rows) * (group.size - 1), rows)
    dist.all_gather(parts, rows.contiguous(), group=group.handle)
    return parts


def _exchange(leaving: Tensor, lengths: Sequence[int], receive: Sequence[int], group: Group, kind: str) -> Exchange:
    arriving = leaving.new_empty(sum(receive), *leaving.shape[1:])
    if group.handle is None:
        return Exchange(None, leaving, leaving)
    group.meter.count(kind, sum(lengths) - lengths[group.rank], leaving)
    work = dist.all_to_all_single(arriving, leaving, list(receive), list(lengths), group=group.handle, async_op=True)
    return Exchange(work, leaving, arriving)


def _length(spans: Sequence[Span]) -> int:
    return sum(end - start for start, end in spans)


def _cast(rows: Tensor, send: Sequence[Sequence[Span]], receive: Sequence[int], group: Group) -> Tensor:
    return start_cast(rows, send, receive, group).wait()


def _reduce(parts: Tensor, send: Sequence[Sequence[Span]], receive: Sequence[int], rows: int, group: Group) -> Tensor:
    back = _exchange(parts.contiguous(), receive, [_length(spans) for spans in send], group, "reduce").wait()
    total = parts.new_zeros(rows, *parts.shape[1:])
    done = 0
    for start, end in (span for spans in send for span in spans):
        total[start:end] += back[done : done + end - start]
        done += end - start
    return total


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: Any, receive: Any, group: Group) -> Tensor:
        ctx.plan = send, receive, len(rows), group
        return _cast(rows, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return group_reduce(grads[0], *ctx.plan), None, None, None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, send: Any, receive: Any, rows: int, group: Group) -> Tensor:
        ctx.plan = send, receive, group
        return _reduce(parts, send, receive, rows, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return group_cast(grads[0], *ctx.plan), None, None, None, None
