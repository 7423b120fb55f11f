"""Velocities of noisy chunks, used again instead of computed anew: faster and lossy, off unless asked for.

A chunk's velocity changes little from step to step while it is mostly noise, and more the cleaner it gets; every chunk of a window is at
another point of that way (the observation of FlowCache, arXiv 2602.10825, which builds on TeaCache's relative change). So each chunk
decides for itself: its velocity is used again until it should have changed by more than a threshold, judged by how fast it last did.

Notable:
- Chunks see older ones only. What a step leaves out are its newest chunks, from the first on behind which none is due, so the others are
  computed exactly as in a whole window; and the newest chunks, which see most, are the costliest.
- A clean chunk whose keys and values are to be stored is always computed: what is remembered is what the plain way would remember of it.
- What guidance does with a chunk may change from step to step; with it changes the velocity, which is then computed.
- Kept velocities are not part of a saved session: one that is loaded computes its first steps in full.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise.guidance import Runner, guidance_weights
from magi_core.denoise.session import Session
from magi_core.denoise.window import Window
from magi_core.errors import MagiError
from magi_core.model import KVCache, MagiDiT

MOST = 10.0


@dataclass(frozen=True, eq=False)
class _Known:
    """A chunk's velocity when it was last computed."""

    velocity: Tensor
    """[1, C, chunk_width, H, W]."""
    time: float
    under: tuple[object, ...]
    """What guidance and schedule did with it."""
    pace: float
    """Relative change per unit of time; infinite until two velocities are known."""


class Reuse:
    """Wraps whoever runs the model; ``threshold``: relative change from which on a velocity is computed anew, 0 for always.

    ``computed`` and ``left_out`` count chunks over all steps. Raises MagiError for a threshold that is none.
    """

    def __init__(self, threshold: float, runner: Runner | None = None) -> None:
        if not 0 <= threshold <= MOST:
            raise MagiError(f"the reuse threshold is {threshold}; it must be from 0 (nothing is reused) to {MOST:g}")
        self.threshold, self.inner = threshold, runner or Runner()
        self.computed = self.left_out = 0
        self._known: weakref.WeakKeyDictionary[KVCache, dict[int, _Known]] = weakref.WeakKeyDictionary()

    @property
    def runner(self) -> Runner:
        """What a session is given."""
        return Runner(self._dispatch, self.inner.remember, self.inner.place)

    def _dispatch(self, model: MagiDiT, sampling: Sampling, window: Window, cache: KVCache) -> Tensor:
        known = self._known.setdefault(cache, {})
        under = _treatment(sampling, window)
        chunks = range(window.first_chunk, window.first_chunk + len(window.times))
        due = [
            (window.extra and i == 0) or self._is_due(known.get(chunk), window.times[i], under[i])
            for i, chunk in enumerate(chunks)
        ]
        count = max((i + 1 for i, wanted in enumerate(due) if wanted), default=0)
        width = window.x.shape[2] // len(chunks)
        parts: list[Tensor] = []
        if count:
            velocity = self.inner.dispatch(model, sampling, _oldest(window, count), cache)
            parts = list(torch.split(velocity, width, dim=2))
        for i in range(int(window.extra), count):
            known[chunks[i]] = _learnt(known.get(chunks[i]), parts[i], window.times[i], under[i])
        parts += [known[chunk].velocity for chunk in chunks[count:]]
        self.computed, self.left_out = self.computed + count, self.left_out + len(chunks) - count
        for old in [chunk for chunk in known if chunk < chunks[0]]:
            del known[old]
        return torch.cat(parts, dim=2)

    def _is_due(self, known: _Known | None, time: float, under: tuple[object, ...]) -> bool:
        if known is None or time <= known.time or under != known.under:
            return True
        return known.pace * (time - known.time) >= self.threshold


def reuse_in(session: Session, threshold: float) -> Reuse:
    """From the next step on, the session's noisy chunks take velocities again; who runs the model stays who it was."""
    reuse = Reuse(threshold, session.runner)
    session.run_by(reuse.runner)
    return reuse


def _treatment(sampling: Sampling, window: Window) -> list[tuple[object, ...]]:
    """By chunk, what else its velocity depends on beside itself and its neighbours."""
    count = len(window.times)
    weights = guidance_weights(sampling, window.times).T.tolist() if sampling.cfg_number == 3 else [[]] * count
    near = [window.near_clean and i == int(window.extra) for i in range(count)]
    return [
        (*weights[i], end - start, near[i], window.step_embedding) for i, (start, end) in enumerate(window.kv_chunks)
    ]


def _oldest(window: Window, count: int) -> Window:
    """The first ``count`` chunks of a window."""
    width = window.x.shape[2] // len(window.times)
    return replace(
        window,
        foresee=lambda: None,  # velocities that are used again lead elsewhere
        x=window.x[:, :, : count * width],
        times=window.times[:count],
        text=window.text[:count],
        kv_chunks=window.kv_chunks[:count],
    )


def _learnt(before: _Known | None, velocity: Tensor, time: float, under: tuple[object, ...]) -> _Known:
    pace = float("inf")
    if before is not None and time > before.time and under == before.under:
        change = (velocity - before.velocity).abs().mean() / velocity.abs().mean().clamp(min=1e-12)
        pace = change.item() / (time - before.time)
    return _Known(velocity, time, under, pace)
