"""How long a layer and a step take on several devices: compute, transfers, and how much of the transfers nothing hides.

Times follow from counted operations and bytes and from what a machine achieves (not its data sheet); they choose between ways of working,
and are no promise. Transfers run one after the other beside the computation, which waits for each portion's keys before it attends to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from magi_core.config import DiTConfig, Sampling
from magi_core.cost.machines import H100, RTX4090, Machine
from magi_core.cost.work import Work
from magi_core.errors import MagiError
from magi_core.kernels import AttnRange
from magi_core.parallel.balance import Problem
from magi_core.parallel.shard import lay_out, share
from magi_core.parallel.slices import area
from magi_core.parallel.wavefront import Flow, flow
from magi_core.parallel.worker import Strategy

Way = Literal["auto", "passes", "keys", "heads", "pipeline"]
"""What is shared: whatever is fastest, the passes of guidance, every layer, by keys or by heads, or the layers one behind the other."""
MOST_STAGES = 4
GUIDED = ("text", "context")
"""Passes of guidance that see what came before; in the third each chunk stands alone."""


WITH_NVLINK = ("H100", "H200", "H800", "A100", "A800", "B200", "GH200")


def machine_of(device: str) -> Machine:
    """What is assumed of a device like "cuda:0": cards that servers join by NVLink are taken for the first, all others for the second."""
    if device.startswith("cuda") and any(name in torch.cuda.get_device_name(device) for name in WITH_NVLINK):
        return H100
    return RTX4090


class Timeline(NamedTuple):
    """Seconds."""

    end: float
    exposed: float
    """Waiting for keys."""


@dataclass(frozen=True)
class Pass:
    """A pass as ``attend`` sees it."""

    ranges: tuple[AttnRange, ...]
    chunks: int
    tokens: int
    past: int = 0
    """Rows of earlier chunks."""
    write_chunks: int = 0

    @property
    def area(self) -> int:
        return area(self.ranges, (0, self.chunks * self.tokens))


def window_pass(sampling: Sampling, tokens: int) -> Pass:
    """A full window in the middle of a video."""
    lengths = sampling.noise2clean_kvrange or (sampling.window_size,)
    seen = [
        lengths[min(i * len(lengths) // sampling.window_size, len(lengths) - 1)] for i in range(sampling.window_size)
    ][::-1]
    past = max(length - i - 1 for i, length in enumerate(seen))
    ranges = tuple(
        AttnRange(i * tokens, (i + 1) * tokens, (past + i + 1 - length) * tokens, (past + i + 1) * tokens)
        for i, length in enumerate(seen)
    )
    return Pass(ranges, len(seen), tokens, past * tokens)


def alone_pass(chunks: int, tokens: int) -> Pass:
    """Chunks that see themselves only."""
    return Pass(tuple(AttnRange(*(i * tokens, (i + 1) * tokens) * 2) for i in range(chunks)), chunks, tokens)


def timeline(local: float, portions: Sequence[tuple[float, float]]) -> Timeline:
    """A computation of ``local`` seconds and then one for each portion (seconds to transfer, to compute), in order."""
    now, arrived, exposed = local, 0.0, 0.0
    for transfer, compute in portions:
        arrived += transfer
        exposed += max(0.0, arrived - now)
        now = max(now, arrived) + compute
    return Timeline(now, exposed)


def attention_time(work: Work, heads: int, step: Pass, ranks: int, machine: Machine, stages: int) -> Timeline:
    """The slowest rank's attention in one layer where keys are exchanged."""
    layout = lay_out(step.ranges, step.chunks, step.tokens, ranks, step.past, step.write_chunks)
    merged = (
        layout.cell_tokens * len(layout.bins[0]) * heads * 4 * 4 / machine.memory
    )  # two float32 outputs read, one written

    def of(rank: int) -> Timeline:
        mine = share(step.ranges, layout, rank, stages, step.past, step.write_chunks)
        rows = (0, layout.cell_tokens * len(layout.bins[rank]))
        portions = [
            (
                machine.latency + sum(stage.receive) * work.key_bytes / machine.link,
                area(stage.ranges, rows) * work.per_pair / machine.attention + merged,
            )
            for stage in mine.stages
        ]
        return timeline(area(mine.local, rows) * work.per_pair / machine.attention, portions)

    return max(of(rank) for rank in range(ranks))


def best_stages(config: DiTConfig, step: Pass, ranks: int, machine: Machine) -> int:
    """In how many portions keys should come."""
    heads = config.num_attention_heads * config.kv_channels
    return min(
        range(1, MOST_STAGES + 1),
        key=lambda n: attention_time(Work.of(config), heads, step, ranks, machine, n).end,
    )


def swapped_bytes(config: DiTConfig, step: Pass, ranks: int) -> float:
    """What a rank sends in a layer where heads are exchanged: its q, k, v, and the output of its heads."""
    heads = config.num_attention_heads * config.kv_channels
    row = 2 * heads * config.params_dtype.itemsize + Work.of(config).key_bytes
    return row * step.chunks * step.tokens / ranks * (ranks - 1) / ranks


def needed_bytes(config: DiTConfig, step: Pass, ranks: int) -> float:
    """What a rank sends in a layer where keys are exchanged, on average."""
    layout = lay_out(step.ranges, step.chunks, step.tokens, ranks, step.past, step.write_chunks)
    cells = tuple(layout.cell(number) for number in range(layout.chunks * layout.per_chunk))
    problem = Problem(step.ranges, cells, ranks, step.past)
    return sum(map(problem.received, layout.bins)) / ranks * Work.of(config).key_bytes


def pass_time(config: DiTConfig, step: Pass, ranks: int, machine: Machine, strategy: Strategy) -> Timeline:
    """All layers of a pass by ``ranks`` devices."""
    work, heads = Work.of(config), config.num_attention_heads * config.kv_channels
    linear = step.chunks * step.tokens / ranks * work.per_token / machine.products
    if ranks == 1:
        layer = Timeline(step.area * work.per_pair / machine.attention, 0.0)
    elif strategy.exchange == "heads":
        swap = 2 * machine.latency + swapped_bytes(config, step, ranks) / machine.link
        layer = Timeline(step.area / ranks * work.per_pair / machine.attention + swap, swap)
    else:
        layer = attention_time(work, heads, step, ranks, machine, strategy.stages)
    gather = step.chunks * step.tokens * (ranks - 1) / ranks * work.hidden_bytes / machine.link
    seconds = config.num_layers * (linear + layer.end) + gather
    return Timeline(seconds, config.num_layers * layer.exposed + gather)


def step_time(
    config: DiTConfig, sampling: Sampling, tokens: int, ranks: int, machine: Machine, strategy: Strategy
) -> Timeline:
    """One denoise step of a full window."""
    together = ranks // strategy.passes
    if strategy.pipeline > 1:
        found = line_flow(config, sampling, tokens, ranks, machine, strategy)
        return Timeline(found.seconds, found.idle * found.seconds)
    whole = pass_time(config, window_pass(sampling, tokens), together, machine, strategy)
    if sampling.cfg_number == 1:
        return whole
    chunks = alone_chunks(sampling)
    one = pass_time(config, alone_pass(1, tokens), together, machine, strategy).end
    loads, alone = [0.0] * strategy.passes, [0] * strategy.passes
    groups: list[list[Timeline]] = [[] for _ in loads]
    for _ in GUIDED:
        i = loads.index(min(loads))
        loads[i] += whole.end
        groups[i].append(whole)
    for _ in range(chunks):
        i = loads.index(min(loads))
        loads[i] += one
        alone[i] += 1
    for group, count in zip(groups, alone, strict=True):
        if count:
            group.append(pass_time(config, alone_pass(count, tokens), together, machine, strategy))
    return max(Timeline(sum(t.end for t in group), sum(t.exposed for t in group)) for group in groups)


def alone_chunks(sampling: Sampling) -> int:
    """Chunks of a window that also stand alone: while that has a weight, as it has at the usual settings for all but the cleanest."""
    return max(1, sampling.window_size * 3 // 4)


def line_flow(
    config: DiTConfig, sampling: Sampling, tokens: int, ranks: int, machine: Machine, strategy: Strategy
) -> Flow:
    """A full window's steps through a line of ``strategy.pipeline`` groups."""
    together, line = ranks // strategy.pipeline, replace(strategy, pipeline=1)

    def seconds(seen: int) -> float:
        one = Pass((AttnRange(0, tokens, 0, seen * tokens),), 1, tokens, (seen - 1) * tokens)
        return pass_time(config, one, together, machine, line).end / strategy.pipeline

    units: list[tuple[int, float]] = []
    window = window_pass(sampling, tokens)
    for slot, r in enumerate(window.ranges):
        guided = 1 if sampling.cfg_number == 1 else len(GUIDED)
        units += [(slot, seconds((r.k_end - r.k_start) // tokens))] * guided
        if sampling.cfg_number == 3 and slot >= window.chunks - alone_chunks(sampling):
            units.append((slot, seconds(1)))
    hop = machine.latency + tokens * Work.of(config).hidden_bytes / machine.link
    return flow(units, strategy.pipeline, hop)


def choose(
    config: DiTConfig,
    sampling: Sampling,
    tokens: int,
    ranks: int,
    machine: Machine,
    way: Way = "auto",
    fits: Callable[[Strategy], bool] = lambda _: True,
) -> Strategy:
    """The fastest strategy to share a model; tokens: of a chunk. fits: whether every device has room for what a strategy gives it.

    Layers one behind the other need the least room; they are chosen only where nothing else fits, or by ``way``.
    Raises MagiError where ``way`` is impossible for so many devices.
    """
    possible = []
    for passes in range(1, ranks + 1 if sampling.cfg_number == 3 else 2):
        if ranks % passes:
            continue
        together = _together(config, sampling, tokens, ranks // passes, machine)
        possible += [replace(strategy, passes=passes) for strategy in together]
    lines = [
        replace(strategy, passes=1, pipeline=count)
        for count in range(2, min(ranks, config.num_layers) + 1)
        if ranks % count == 0
        for strategy in _together(config, sampling, tokens, ranks // count, machine)
    ]
    if way == "auto":
        asked = [s for s in possible if fits(s)] or [s for s in lines if fits(s)] or (lines or possible)[-1:]
    else:
        asked = [s for s in (*possible, *lines) if ranks == 1 or _way(s, ranks) == way]
    if not asked:
        others = sorted({_way(strategy, ranks) for strategy in (*possible, *lines)} - {"mixed"})
        raise MagiError(f"{ranks} devices cannot share this model by {way}; possible are auto, {', '.join(others)}")
    return min(asked, key=lambda strategy: step_time(config, sampling, tokens, ranks, machine, strategy).end)


def _together(config: DiTConfig, sampling: Sampling, tokens: int, ranks: int, machine: Machine) -> list[Strategy]:
    """How ``ranks`` devices can share every layer."""
    if ranks == 1:
        return [Strategy()]
    found = [Strategy(stages=best_stages(config, window_pass(sampling, tokens), ranks, machine))]
    return [*found, Strategy(exchange="heads")] if config.num_query_groups % ranks == 0 else found


def _way(strategy: Strategy, ranks: int) -> str:
    if strategy.pipeline > 1:
        return "pipeline" if strategy.pipeline == ranks else "mixed"
    if strategy.passes == 1:
        return strategy.exchange
    return "passes" if strategy.passes == ranks else "mixed"
