"""How long a step takes devices in a line, and how much of it they wait: the order of ``Line.step``, played through with times for its units.

What is played are the units of the same step again and again, the beginning of the next step included, and that all devices answer
before the next step is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from magi_core.parallel.units import leads

STEPS = 4
"""Played after the first, in which the line fills."""


class Flow(NamedTuple):
    """A step of a line that is full."""

    seconds: float
    idle: float
    """Share of all devices' time in which they wait, 0..1."""


def flow(units: Sequence[tuple[int, float]], ranks: int, hop: float = 0.0) -> Flow:
    """units: slot of the chunk and seconds on every device, in order. hop: seconds that a hidden state takes from one device to the next; velocities are small."""
    count, last = len(units), ranks - 1
    ahead = leads([slot for slot, _ in units], count, ranks)
    begun = [0] * ranks
    ended: list[list[float]] = [[] for _ in range(ranks)]  # of the step that is asked for, by unit
    now, mark = 0.0, 0.0
    for step in range(STEPS + 1):
        free = [now] * ranks
        for rank in range(ranks):
            for i in range(begun[rank], count):
                arrived = ended[rank - 1][i] + hop if rank else 0.0
                free[rank] = max(free[rank], arrived) + units[i][1]
                ended[rank].append(free[rank])
        known = {slot: ended[last][i] for i, (slot, _) in enumerate(units)}  # a chunk's last unit counts
        following: list[list[float]] = [[] for _ in range(ranks)]
        for rank in range(ranks):
            for i in range(ahead[rank]):
                arrived = following[rank - 1][i] + hop if rank else known[units[i][0]]
                free[rank] = max(free[rank], arrived) + units[i][1]
                following[rank].append(free[rank])
        ended, begun = following, ahead
        now = max(*free, *known.values())
        if step == 0:
            mark = now
    seconds = (now - mark) / STEPS
    return Flow(seconds, max(0.0, 1 - sum(cost for _, cost in units) / seconds))
