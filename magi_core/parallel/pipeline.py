"""Layers dealt out to devices that stand in a line: for a model whose weights do not fit one of them.

Every device holds the weights of its own layers, and keys and values of these only. What moves along the line are units, a pass of
guidance over one chunk; hidden states are all that is sent, and each chunk's velocity goes from the last device back to the first.

Notable:
- Chunks see older ones only. So a unit needs the older chunks' units of the same pass and step, whose keys and values it finds on every
  device that it comes to, and the chunk's own velocity of the step before: units that go in order are exact.
- The line does not run dry between steps. While the last device still works on a step, the others have begun the next one: what it will
  be follows from the velocities as they come in, unless the plan is changed. Of that next step nothing is remembered before it is asked
  for; if another one is asked for, what was begun is dropped.
- A device does as many units between two answers as a step has, wherever it stands in the line, so none waits once the line is full:
  with window 4 up to four devices, with three passes of guidance up to ten, if all units take equally long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise.guidance import extra_is_x, start, start_alone
from magi_core.denoise.window import Foreseen, Window
from magi_core.model import KVCache, MagiDiT
from magi_core.model.dit import Pass
from magi_core.parallel.collectives import Group
from magi_core.parallel.units import Unit, leads, units_of

UNDER_WAY = 3
"""Hidden states that a device may have sent and the next one not taken."""


class Drafts(KVCache):
    """Keys and values of one pass's noisy chunks, for the younger ones of the same step, in front of those that are remembered."""

    def __init__(self, past: KVCache) -> None:
        super().__init__()
        self.past, self.memo = past, past.memo

    def keep_on_host(self) -> None:
        self.past.keep_on_host()
        super().keep_on_host()

    def _rows(self, layer: int, first: int, end: int) -> list[Tensor]:
        held = self._layers[layer].slots if layer in self._layers else {}
        drafted = next((chunk for chunk in range(first, end) if chunk in held), end)
        return [*self.past._rows(layer, first, drafted), *super()._rows(layer, drafted, end)]


@dataclass(eq=False)
class Task:
    """A step on its way through this device."""

    window: Window
    units: Sequence[Unit]
    x: list[Tensor | None]
    """By slot, [1, C, chunk_width, H, W]; None: not known yet."""
    answers: bool = True
    """Whether the first device is sent the velocities."""
    done: int = 0
    """Units that this device is through with."""
    velocities: list[Tensor] = field(default_factory=list)
    """By slot, as far as they are known."""


class Line:
    """One device's place in the line."""

    def __init__(self, model: MagiDiT, layers: range, line: Group, everyone: Group) -> None:
        """line: those that a unit visits, in order. Velocities go back through ``everyone``, so that neither way waits for the other."""
        self.model, self.layers, self.line, self.everyone = model, layers, line, everyone
        self._is_first, self._is_last = line.rank == 0, line.rank == line.size - 1
        self._begun: Task | None = None
        self._drafts: dict[str, Drafts] = {}
        self._arriving: tuple[Any, Tensor] | None = None
        self._hidden = torch.empty(0)
        """The last that arrived."""
        self._owed = 0
        """How many more have been sent here already, between two steps."""
        self._leaving: list[tuple[Any, Tensor]] = []
        self._returning: list[tuple[Any, Tensor]] = []

    @torch.no_grad()
    def step(self, sampling: Sampling, window: Window | None, then: Foreseen | None, cache: KVCache) -> Tensor | None:
        """The velocity of a window, as ``dispatch``, on the first device; None on the others, all of which must be called alike.

        window: None for the one that was foreseen in the call before. then: what may be begun meanwhile.
        """
        now = self._continued() if window is None else self._fresh(window, units_of(sampling, window), cache)
        next_one = None if then is None else self._foreseen(sampling, then)
        follows = len(next_one.units) if next_one else 0
        lead = leads([unit.slot for unit in now.units], follows, self.line.size)
        ahead, coming = lead[self.line.rank], lead[self.line.rank - 1]
        while now.done < len(now.units):
            self._do(now, more=now.done + 1 < len(now.units) + coming)
        self._store(now.window, cache, _remembering(sampling))
        if next_one is not None and then is not None:
            while next_one.done < ahead:
                self._go_on(then, now, next_one, next_one.units[next_one.done].slot)
                self._do(next_one, more=next_one.done + 1 < coming)
            for slot in range(len(next_one.x)):
                self._go_on(then, now, next_one, slot)
        else:
            self._drafts = {}
        self._begun, self._owed = next_one, 0 if self._is_first else coming - ahead
        for work, _ in self._returning:
            work.wait()
        self._returning = []
        if not self._is_first:
            return None
        velocities = [self._velocity(now, slot) for slot in range(len(now.x))]
        if extra_is_x(sampling, now.window):
            velocities[0] = _known(now.x[0])
        return torch.cat(velocities, dim=2)

    @torch.no_grad()
    def remember(self, sampling: Sampling, window: Window, cache: KVCache) -> None:
        """As ``guidance.remember``, of this device's layers."""
        kind, count = _remembering(sampling), len(window.times)
        told = replace(window, text=(window.null,) * count, write_chunks=count)
        now = self._fresh(told, [Unit(kind, slot, 0.0) for slot in range(count)], cache, answers=False)
        while now.done < count:
            self._do(now, more=now.done + 1 < count)
        self._store(told, cache, kind)
        self._drafts = {}

    def drop(self) -> None:
        """Give up the step that was begun, and what was kept for it; all devices together."""
        for _ in range(self._owed):
            self._take(self._hidden, more=False)
        self._owed = 0
        self._begun, self._drafts = None, {}

    def _fresh(self, window: Window, units: Sequence[Unit], cache: KVCache, *, answers: bool = True) -> Task:
        self.drop()
        self._drafts = {kind: Drafts(cache) for kind in ("text", "context")}
        return Task(window, units, list(_by_slot(window)), answers)

    def _continued(self) -> Task:
        if self._begun is None:
            raise ValueError("no step was begun")
        self._owed = 0
        return self._begun

    def _foreseen(self, sampling: Sampling, then: Foreseen) -> Task:
        known = [
            None if self._is_first and source is not None else x
            for source, x in zip(then.sources, _by_slot(then.window), strict=True)
        ]
        return Task(then.window, units_of(sampling, then.window), known)

    def _go_on(self, then: Foreseen, now: Task, next_one: Task, slot: int) -> None:
        """Find out the next step's x of a slot, as soon as the velocity is there that it follows from."""
        source = then.sources[slot]
        if next_one.x[slot] is None and source is not None:
            next_one.x[slot] = then.chunk(slot, _known(now.x[source]), self._velocity(now, source))

    def _do(self, task: Task, *, more: bool) -> None:
        """The next unit of a step; more: whether another one comes here before this call is over."""
        unit, window = task.units[task.done], task.window
        if not task.done:
            for drafts in self._drafts.values():
                drafts.keep_from(window.first_chunk)
        one = self._start(unit, window, _known(task.x[unit.slot]))
        if not self._is_first:
            one.hidden = self._take(one.hidden, more=more)
        self.model.through([one])
        if not self._is_last:
            self._send(one.hidden)
        elif task.answers:
            self._answer(task, unit, one)
        task.done += 1

    def _start(self, unit: Unit, window: Window, x: Tensor) -> Pass:
        slot, count = unit.slot, len(window.times)
        chunk = replace(
            window,
            x=x,
            times=window.times[slot : slot + 1],
            text=window.text[slot : slot + 1],
            first_chunk=window.first_chunk + slot,
            kv_chunks=window.kv_chunks[slot : slot + 1],
            write_chunks=int(slot + 1 < count or slot < window.write_chunks),
        )
        if unit.kind == "alone":
            return start_alone(self.model, chunk, [0], self._drafts["context"].memo)
        if unit.kind == "context":
            return start(self.model, chunk, [window.null], self._drafts["context"], dropped=True)
        if unit.kind == "copy":
            last = window.first_chunk + count
            chunk = replace(chunk, first_chunk=last, kv_chunks=((last, last + 1),), write_chunks=0)
        return start(self.model, chunk, chunk.text, self._drafts["text"], dropped=False)

    def _store(self, window: Window, cache: KVCache, kind: Literal["text", "context"]) -> None:
        """Remember what a step was to remember, now that it was asked for."""
        for chunk in range(window.first_chunk, window.first_chunk + window.write_chunks):
            for layer in self.layers:
                cache.write(layer, chunk, self._drafts[kind].read(layer, chunk, chunk + 1)[0])

    def _take(self, like: Tensor, *, more: bool) -> Tensor:
        """The hidden state that comes next; where there will be another one it may begin to arrive."""
        work, hidden = self._arriving or self._expect(like)
        self._arriving = self._expect(like) if more else None
        work.wait()
        self._hidden = hidden
        return hidden

    def _expect(self, like: Tensor) -> tuple[Any, Tensor]:
        hidden = torch.empty_like(like)
        return dist.irecv(hidden, self.line.ranks[self.line.rank - 1], group=self.line.handle), hidden

    def _send(self, hidden: Tensor) -> None:
        """Hand a hidden state on."""
        hidden = hidden.contiguous()
        self.line.meter.count("hidden", len(hidden), hidden)
        work = dist.isend(hidden, self.line.ranks[self.line.rank + 1], group=self.line.handle)
        self._leaving.append((work, hidden))
        while len(self._leaving) > UNDER_WAY:
            self._leaving.pop(0)[0].wait()

    def _answer(self, task: Task, unit: Unit, one: Pass) -> None:
        """Add a unit's velocity to its chunk's, in the order of units; a chunk's whole velocity goes to the first device."""
        if len(task.velocities) == unit.slot:
            task.velocities.append(torch.zeros_like(_known(task.x[unit.slot])))
        if unit.weight:
            task.velocities[unit.slot] += unit.weight * self.model.velocity(one)
        if task.done + 1 == len(task.units) or task.units[task.done + 1].slot != unit.slot:
            velocity = task.velocities[unit.slot]
            self.everyone.meter.count("velocity", len(velocity), velocity)
            work = dist.isend(velocity, self.line.ranks[0], group=self.everyone.handle)
            self._returning.append((work, velocity))

    def _velocity(self, task: Task, slot: int) -> Tensor:
        """On the first device, the velocity of a slot, as soon as it is there."""
        while len(task.velocities) <= slot:
            velocity = torch.empty_like(_known(task.x[len(task.velocities)]))
            dist.recv(velocity, self.line.ranks[-1], group=self.everyone.handle)
            task.velocities.append(velocity)
        return task.velocities[slot]


def _remembering(sampling: Sampling) -> Literal["text", "context"]:
    """The kind of pass whose keys and values are remembered."""
    return "context" if sampling.cfg_number == 3 else "text"


def _by_slot(window: Window) -> Sequence[Tensor]:
    return window.x.chunk(len(window.times), dim=2)


def _known(x: Tensor | None) -> Tensor:
    if x is None:
        raise ValueError("a chunk's latents are not known yet")
    return x
