"""Training sequences for any model: who reads whom is what its own sampler does (spec 7), so that training shows what sampling needs."""

from __future__ import annotations

from magi_core.config import Sampling
from magi_core.training.objective import LAYOUTS, Layout, anchored, window_layout

CYCLE = ("first", "next", "stream", "first", "next", "start")
"""The situations of the passes of a run, in turn: text and image (first, start), continuation (next, stream)."""


def layouts_for(sampling: Sampling, longest: int) -> dict[str, Layout]:
    """The situations of ``CYCLE`` that clips of at most ``longest`` chunks can show, for a model with these settings.

    "first" and "next" are chunks on their own, or after a clean one. "start" is a window's first filling, "stream" a window behind a clean
    chunk: every chunk is a window's share of the schedule ahead of its successor and reads as far back as its stage does. Where the model's
    videos have an anchor and the clips are long enough, "stream" stands behind one, with a chunk between them where there is room.
    """
    windows = {
        "start": window_layout(0, min(sampling.window_size, longest), sampling),
        "stream": window_layout(1, min(sampling.window_size, longest - 1), sampling),
    }
    noisy = min(sampling.window_size, longest - 2)
    if sampling.anchor and noisy > 0:
        windows["stream"] = anchored(window_layout(1, noisy, sampling), gap=min(1, longest - 2 - noisy))
    layouts = {"first": LAYOUTS["first"], "next": LAYOUTS["next"]} | windows
    shown = {name: layout for name, layout in layouts.items() if 0 <= max(layout.shown, default=-1) < longest}
    return {name: layout for name, layout in shown.items() if not all(layout.clean)}
