"""What a node's inputs do to a model's settings: 0, "", "model's own" and nothing connected leave its own."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from magi_core.config import MAX_STEPS, Sampling
from magi_core.errors import MagiError, whole_number

MOST_IN_FLIGHT = 16
"""Chunks in a window that a node offers."""
OWN = "model's own"
ANCHORS = {OWN: None, "on": True, "off": False}
ROUNDING = 1e-4
"""How far from 1 and 0 a scheduler's ends may be."""


def check_settings(steps: int | None, window: int | None, kv_ranges: str | None) -> None:
    """Raise MagiError unless the three go together, as far as they are known: None is linked, 0 and "" are the model's own."""
    known = {"steps": (steps, MAX_STEPS), "window": (window, MOST_IN_FLIGHT)}
    numbers = {name: 0 if n is None else whole_number(name, n, 0, most) for name, (n, most) in known.items()}
    go_together(numbers["steps"], numbers["window"], parse_ranges(kv_ranges or ""))


def go_together(steps: int, window: int, ranges: tuple[int, ...]) -> None:
    """Raise MagiError unless the steps are a multiple of the window and of the number of ranges; 0 and () are not known."""
    if steps and window and steps % window:
        near = max(window, round(steps / window) * window)
        raise MagiError(f"steps is {steps} and window is {window}; steps must be a multiple of the window: try {near}")
    if steps and ranges and steps % len(ranges):
        raise MagiError(
            f"kv_ranges has {len(ranges)} entries and steps is {steps}; steps must be a multiple of the number of entries"
        )


@dataclass(frozen=True)
class Asked:
    """What a node's inputs ask for; as ``Asked()`` has them they leave the model's own."""

    steps: int = 0
    window: int = 0
    guidance: float = 0.0
    history_guidance: float = 0.0
    kv_ranges: str = ""
    sigmas: Tensor | None = None
    anchor: str = OWN

    def kept(self) -> None:
        """Raise MagiError where anything is asked for: a session has its settings already."""
        for field in fields(self):
            value = getattr(self, field.name)
            connected = isinstance(value, Tensor)
            if connected or value != field.default:
                shown = "connected" if connected else repr(value)
                raise MagiError(
                    f"{field.name} is {shown}, but a session keeps the settings it was begun with; leave {field.name} as a new node has it"
                )


def sampling_with(own: Sampling, asked: Asked) -> Sampling:
    """The model's settings with what is asked for. Raises MagiError for what does not go together."""
    steps, window = asked.steps, asked.window
    times = None if asked.sigmas is None else times_of(asked.sigmas)
    if times is not None and steps not in (0, len(times) - 1):
        raise MagiError(f"steps is {steps}, but the connected sigmas are for {len(times) - 1} steps; set steps to 0")
    if asked.anchor not in ANCHORS:  # where it is linked
        raise MagiError(f"anchor is {asked.anchor!r}; it must be one of {', '.join(ANCHORS)}")
    made = len(times) - 1 if times is not None else steps or own.num_steps
    ranges = parse_ranges(asked.kv_ranges)
    go_together(made, window or own.window_size, ranges or own.noise2clean_kvrange)
    return own.changed(
        steps=steps or None,
        window=window or None,
        guidance=asked.guidance or None,
        history_guidance=asked.history_guidance or None,
        kv_ranges=ranges or None,
        times=times,
        anchor=ANCHORS[asked.anchor],
    )


def times_of(sigmas: Tensor) -> tuple[float, ...]:
    """MAGI's times, 0 (noise) to 1 (clean), of a flow model's SIGMAS, 1 to 0: t = 1 - sigma. Raises MagiError for any other."""
    levels = sigmas.detach().float().cpu()
    ends = levels.new_tensor([1.0, 0.0])
    flow = levels.ndim == 1 and len(levels) > 1 and torch.allclose(levels[[0, -1]], ends, rtol=0, atol=ROUNDING)
    if not flow or not bool((levels.diff() < 0).all()):
        shown = ", ".join(f"{level:g}" for level in levels.flatten()[:4].tolist())
        raise MagiError(
            f"sigmas are {shown or 'empty'}...; they must fall from 1 to 0 without a repeat, as the schedulers of flow models give them"
        )
    return (0.0, *(1 - levels[1:-1]).tolist(), 1.0)


def parse_ranges(text: str) -> tuple[int, ...]:
    """The numbers of a list like "5,4,3,2"; raises MagiError for anything else."""
    words = text.replace(" ", "").split(",") if text.strip() else []
    if any(not (word.isascii() and word.isdigit() and 0 < int(word[:6]) < 10_000) for word in words):
        raise MagiError(
            f"kv_ranges is {text[:60]!r}; it must be a list of chunk counts like '5,4,3,2', or empty for the model's own"
        )
    return tuple(int(word) for word in words)
