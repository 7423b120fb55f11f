"""What goes along a line of devices that hold a share of the layers each, and which layers these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from magi_core.config import Sampling
from magi_core.denoise.guidance import NEAR_CLEAN_WEIGHT, guided_parts
from magi_core.denoise.window import Window
from magi_core.errors import MagiError


@dataclass(frozen=True)
class Unit:
    """One pass over one chunk of a window."""

    kind: Literal["text", "context", "alone", "copy"]
    """Of guidance; "copy": the distilled model's nearly clean chunk, seen alone."""
    slot: int
    """Of the chunk in the window."""
    weight: float
    """Of its velocity."""


def units_of(sampling: Sampling, window: Window) -> list[Unit]:
    """What a step consists of, in the order in which it goes along the line: chunk by chunk, the oldest first."""
    count = len(window.times)
    if sampling.cfg_number == 3:
        stored = window.write_chunks > 0
        parts = guided_parts(sampling, window.times, window.kv_chunks, extra=window.extra, store=stored)
        weights = [
            {part.kind: part.weights[part.chunks.index(i)] for part in parts if i in part.chunks} for i in range(count)
        ]
        return [Unit(kind, i, weight) for i, by_kind in enumerate(weights) for kind, weight in by_kind.items()]
    near = int(window.extra) if window.near_clean else None
    units = []
    for i in range(count):
        units.append(Unit("text", i, NEAR_CLEAN_WEIGHT if i == near else 1.0))
        if i == near:
            units.append(Unit("copy", i, 1 - NEAR_CLEAN_WEIGHT))
    return units


def share_of(layers: int, rank: int, ranks: int) -> range:
    """The layers of one of ``ranks`` in a line. Raises MagiError where there are fewer layers than ranks."""
    if layers < ranks:
        raise MagiError(f"{layers} layers cannot be dealt out to {ranks} devices in a line; use fewer devices")
    return range(rank * layers // ranks, (rank + 1) * layers // ranks)


def leads(slots: Sequence[int], following: int, ranks: int) -> list[int]:
    """By rank, how many of the ``following`` units of the next step it does before it answers for this one's, of the chunks ``slots``.

    A rank that is one place further ahead in the line is one unit ahead, or two: then nobody waits for a transfer or a longer unit. More
    than the last rank leaves time for would have to wait for the velocities that the next step begins with.
    """
    last = ranks - 1
    first = min(2 * last, len(slots) - slots.count(slots[0]))
    return [min(following, max(last - rank, -(-first * (last - rank) // last))) for rank in range(ranks)]
