"""Training sequences for any model: who reads whom is what its own sampler does (spec 7), so that training shows what sampling needs."""

from __future__ import annotations

from magi_core.config import Sampling
from magi_core.denoise.schedule import EVERYTHING
from magi_core.training.objective import LAYOUTS, Layout

CYCLE = ("first", "next", "stream", "first", "next", "start")
"""The situations of the passes of a run, in turn: text and image (first, start), continuation (next, stream)."""


def layouts_for(sampling: Sampling, longest: int) -> dict[str, Layout]:
    """The situations of ``CYCLE`` that clips of at most ``longest`` chunks can show, for a model with these settings.

    "first" and "next" are chunks on their own, or after a clean one. "start" is a window's first filling, "stream" a window behind a clean
    chunk: every chunk is a window's share of the schedule ahead of its successor and reads as far back as its stage does.
    """
    windows = {
        "start": _window(sampling, 0, min(sampling.window_size, longest)),
        "stream": _window(sampling, 1, min(sampling.window_size, longest - 1)),
    }
    layouts = {"first": LAYOUTS["first"], "next": LAYOUTS["next"]} | windows
    shown = {name: layout for name, layout in layouts.items() if 0 <= max(layout.places, default=-1) < longest}
    return {name: layout for name, layout in shown.items() if not all(layout.clean)}


def _window(sampling: Sampling, clean: int, noisy: int) -> Layout:
    """``noisy`` chunks in a window, behind ``clean`` clean ones."""
    window, ranges = sampling.window_size, sampling.noise2clean_kvrange or (EVERYTHING,)
    reads = [(i, i + 1) for i in range(clean)]
    for place in range(clean, clean + noisy):
        stage = clean + noisy - 1 - place  # of the window's, from the noisiest on
        reads.append((max(0, place + 1 - ranges[stage * len(ranges) // window]), place + 1))
    flags = (True,) * clean + (False,) * noisy
    return Layout(flags, tuple(range(clean + noisy)), tuple(reads), stagger=1 / window)
