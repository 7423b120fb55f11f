"""What the tests have worker processes do. A job is a function of the world and plain arguments; it is called on every rank."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from magi_core.checkpoint.load import load_dit
from magi_core.config import DiTConfig
from magi_core.golden import Golden
from magi_core.kernels import AttnRange, MaskType, Partial, attend, attend_lse
from magi_core.kernels.reference import attend_reference
from magi_core.model import MagiDiT
from magi_core.model.layers import keep_layers
from magi_core.parallel import attention as spread_attention
from magi_core.parallel.attention import attend_shares
from magi_core.parallel.collectives import Exchange, Group, group_cast, group_merge, group_reduce, start_cast
from magi_core.parallel.predict import timeline
from magi_core.parallel.shard import lay_out, received, share
from magi_core.parallel.slices import area
from magi_core.parallel.units import share_of
from magi_core.parallel.wire import Packed, pack
from magi_core.parallel.worker import Build, Decoder, Strategy, Worker
from magi_core.parallel.world import World


class Jobs:
    """A worker whose calls are the functions of this file."""

    def __init__(self, world: World) -> None:
        self.world = world

    def run(self, job: str, *arguments: Any) -> Any:
        return globals()[job](self.world, *arguments)


def pid(world: World) -> int:
    return os.getpid()


def collectives(world: World, sends: list[list[list[tuple[int, int]]]], rows: int) -> dict[str, Any]:
    """sends[i][j]: the spans of rank i's rows that go to rank j."""
    group, rank = world.everyone, world.rank
    send = sends[rank]
    receive = [sum(b - a for a, b in sends[source][rank]) for source in range(world.size)]
    everybody = [torch.arange(rows * 3, dtype=torch.float64).view(rows, 3) + 1000 * r for r in range(world.size)]
    before = world.meter.sent.get("cast", 0)
    arrived = group_cast(everybody[rank], send, receive, group)
    sent = world.meter.sent["cast"] - before
    expected = torch.cat([everybody[s][a:b] for s in range(world.size) for a, b in sends[s][rank]] + [arrived[:0]])
    x = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(rank)).requires_grad_()
    y = torch.randn(sum(receive), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9 + rank))
    there = group_cast(x, send, receive, group)
    back = group_reduce(y, send, receive, rows, group)
    products = torch.stack([(there * y).sum(), (x * back).sum()])  # <cast x, y> and <x, reduce y>, over all ranks
    total = products.detach().clone()
    dist.all_reduce(total, group=group.handle)
    (gradient,) = torch.autograd.grad((there * y).sum(), x)
    z = y.clone().requires_grad_()
    (reduced,) = torch.autograd.grad((group_reduce(z, send, receive, rows, group) * x.detach()).sum(), z)
    return {
        "exact": torch.equal(arrived, expected),
        "sent": sent,
        "transpose": torch.allclose(total[0], total[1]),
        "cast gradient": torch.allclose(gradient, back),
        "reduce gradient": torch.allclose(reduced, group_cast(x.detach(), send, receive, group)),
    }


def merged(world: World, reads: list[list[list[tuple[int, int]]]], rows: int) -> dict[str, float]:
    """Queries go to the ranks whose keys they read, reads[rank][there]; what they saw comes back as one. Against one device, in float64."""
    group, rank, d = world.everyone, world.rank, 4
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(world.size, rows, 2, d, dtype=torch.float64, generator=draw) for _ in range(3))
    weight, lse_weight = (torch.randn(rows, 2, *tail, dtype=torch.float64, generator=draw) for tail in ((d,), ()))

    def seen(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.einsum("qhd,khd->qhk", q, k)
        return torch.einsum("qhk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1)

    mine = q[rank].clone().requires_grad_()
    receive = [sum(b - a for a, b in reads[source][rank]) for source in range(world.size)]
    there = seen(group_cast(mine, reads[rank], receive, group), k[rank], v[rank])
    out, lse = group_merge(*there, reads[rank], receive, rows, group)
    mask = torch.zeros(rows, world.size * rows, dtype=torch.bool)
    for other, spans in enumerate(reads[rank]):
        for a, b in spans:
            mask[a:b, other * rows : (other + 1) * rows] = True
    visible = mask.any(dim=1)
    alone = q[rank].clone().requires_grad_()
    scores = torch.einsum("qhd,khd->qhk", alone, k.flatten(0, 1)).masked_fill(~mask[:, None], -1e9)[visible]
    wanted = torch.einsum("qhk,khd->qhd", scores.softmax(-1), v.flatten(0, 1))
    (expected,) = torch.autograd.grad(
        (wanted * weight[visible]).sum() + (scores.logsumexp(-1) * lse_weight[visible]).sum(), alone
    )
    (gradient,) = torch.autograd.grad((out * weight).sum() + (lse * lse_weight)[visible].sum(), mine)
    return {
        "out": (out[visible] - wanted).abs().max().item(),
        "lse": (lse[visible] - scores.logsumexp(-1)).abs().max().item(),
        "gradient": (gradient - expected).abs().max().item(),
        "unseen": out[~visible].abs().sum().item() + float((lse[~visible] != -torch.inf).sum()),
    }


def attention(
    world: World,
    ranges: list[tuple[int, ...]],
    chunks: int,
    tokens: int,
    past: int,
    write: int,
    stages: int,
    dtype: str,
) -> dict[str, Any]:
    """Spread attention of random rows against one device's: output, what is stored, bytes, and gradients in float32."""
    slices = tuple(AttnRange(*r[:4], MaskType(r[4])) for r in ranges)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(n, heads, 8, generator=draw)
        for n, heads in ((chunks * tokens, 4), *((past + chunks * tokens, 2),) * 2)
    )
    q, k, v = (x.to(getattr(torch, dtype)) for x in (q, k, v))
    layout = lay_out(slices, chunks, tokens, world.size, past, write)
    mine = share(slices, layout, world.rank, stages, past, write)
    size = layout.cell_tokens

    def cut(rows: Tensor) -> Tensor:
        local = rows.new_zeros(len(layout.bins[world.rank]) * size, *rows.shape[1:])
        for (a, b), first in layout.local(world.rank):
            local[first : first + b - a] = rows[a:b]
        return local

    own = [cut(x).requires_grad_() for x in (q, k[past:], v[past:])]
    earlier = torch.cat([k[:past], v[:past]], dim=-1)
    stored = torch.zeros(write * tokens, 2, 16, dtype=q.dtype)
    before = world.meter.sent.get("cast", 0)
    with torch.no_grad():
        out = attend_shares(*own, mine, world.everyone, past=[earlier], stored=stored)
    sent = torch.tensor(world.meter.sent.get("cast", 0) - before)
    dist.all_reduce(sent, group=world.everyone.handle)
    alone = [x.clone().requires_grad_() for x in (q, k, v)]
    whole = attend(*alone, slices)
    reference = attend_reference(q, k, v, slices)
    weight = torch.randn(whole.shape, generator=draw)
    gradients = torch.autograd.grad((whole * weight).sum(), alone)
    spread = attend_shares(*own, mine, world.everyone, past=[earlier])
    valid = cut(torch.ones(len(q), 1, 1))
    local = torch.autograd.grad((spread * cut(weight) * valid).sum(), own)
    wanted = [cut(g) for g in (gradients[0], gradients[1][past:], gradients[2][past:])]
    needed = sum(received(slices, layout, past, write)) * 2 * 16 * q.element_size()
    return {
        "out": ((out - cut(reference)) * valid).abs().max().item() / reference.abs().max().item(),
        "stored": torch.equal(stored, torch.cat([k, v], dim=-1)[past : past + write * tokens]),
        "sent": int(sent) == needed,
        "gradients": max(((a - b) * valid).abs().max().item() for a, b in zip(local, wanted, strict=True)),
    }


def begin(world: World, name: str, build: Build, strategy: Strategy, decoder: Decoder | None = None) -> None:
    """A worker for a model, beside those that there are; it is spoken to by ``worker``."""
    WORKERS[name] = WatchedWorker(world, build, strategy, decoder)


def worker(world: World, name: str, method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(WORKERS[name], method)(*arguments)


def random_model(config: DiTConfig, device: torch.device | str = "cpu", part: tuple[int, int] = (0, 1)) -> MagiDiT:
    torch.manual_seed(0)
    model = MagiDiT(config).requires_grad_(False).to(device)
    if part != (0, 1):
        keep_layers(model.videodit_blocks, share_of(config.num_layers, *part))
    return model


def recorded_model(name: str, folder: str, device: torch.device, part: tuple[int, int]) -> MagiDiT:
    """With the weights of a golden configuration."""
    golden = Golden(Path(folder))
    config = golden.config(name).dit
    layers = share_of(config.num_layers, *part)
    return load_dit(golden.weights_path(name), config, device=device, layers=layers).requires_grad_(False)


class WatchedWorker(Worker):
    """Tells what every rank holds."""

    def held(self) -> dict[str, Packed]:
        return {name: pack(tensor) for name, tensor in list(self._caches.values())[-1].state().items()}


WORKERS: dict[str, Worker] = {}


def throttled(world: World, cases: tuple[tuple[int, float, float], ...]) -> tuple[list[float], list[float]]:
    """(predicted, measured) seconds of attention; cases are (portions, seconds a chunk's keys travel, seconds a chunk's area takes)."""
    tokens = 8
    ranges = tuple(AttnRange(i * tokens, (i + 1) * tokens, 0, 4 * tokens) for i in range(4))
    layout = lay_out(ranges, 4, tokens, world.size, 0, 0)
    rows = (0, layout.cell_tokens * len(layout.bins[world.rank]))
    q = torch.zeros(rows[1], 2, 4)
    predicted, measured = [], []
    for portions, travel, compute in cases:
        link, mine = Link(travel / tokens), share(ranges, layout, world.rank, portions, 0, 0)

        def slow(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange], cost: float = compute) -> Partial:
            time.sleep(cost * area(ranges, rows) / tokens**2)
            return attend_lse(q, k, v, ranges)

        with mock.patch.object(spread_attention, "start_cast", link.start):
            begun = time.monotonic()
            attend_shares(q, q, q, mine, world.everyone, attend_lse=slow)
            measured.append(time.monotonic() - begun)
        parts = [(sum(s.receive) * travel / tokens, area(s.ranges, rows) * compute / tokens**2) for s in mine.stages]
        predicted.append(timeline(area(mine.local, rows) * compute / tokens**2, parts).end)
    return predicted, measured


class Link:
    """A link on which rows take their time, one after the other."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.free = seconds, 0.0

    def start(self, rows: Tensor, send: Any, receive: Sequence[int], group: Group) -> Exchange:
        exchange = start_cast(rows, send, receive, group)
        self.free = max(self.free, time.monotonic()) + sum(receive) * self.seconds
        return SlowExchange(exchange, self.free)


class SlowExchange(Exchange):
    def __init__(self, real: Exchange, arrives: float) -> None:
        self.real, self.arrives = real, arrives

    def wait(self) -> Tensor:
        time.sleep(max(0.0, self.arrives - time.monotonic()))
        return self.real.wait()
