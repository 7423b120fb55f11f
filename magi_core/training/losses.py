"""Losses by situation and by noise level: gathered while training, a line of JSON every few steps, and a curve of all of them."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from magi_core.files import atomic_write
from magi_core.training.curve import draw_curve
from magi_core.training.objective import schedule_time

QUARTERS = tuple(f"quarter {n}" for n in range(1, 5))
"""Of the sampler's schedule, the noisiest first."""

log = logging.getLogger(__name__)


class Losses:
    """The mean squared error by situation and by quarter of the sampler's schedule, gathered between two lines of the log.

    Lines of an older run after the step from which this one goes on are removed. Without a path nothing is written: of several
    processes one writes, after ``add_up``.
    """

    def __init__(self, path: Path | None, step: int, title: str = "magi-nano DiT") -> None:
        self.path, self.title = path, title
        self.lines: list[dict[str, float]] = []
        if path is not None:
            self.lines = [line for line in _read_lines(path) if line["step"] <= step]
            with atomic_write(path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2))
        self._quarters = schedule_time(torch.tensor([0.25, 0.5, 0.75]))

    def add(self, name: str, errors: Tensor, weight: Tensor, t: Tensor) -> None:
        """Add a batch: errors [N, D] as ``squared_errors`` gives them, weight [N, 1, T, 1, 1], t [N, D]."""
        frames = weight.reshape(*errors.shape, -1).sum(2)
        pairs = torch.stack([errors, frames], dim=-1)
        self._sums["loss"] += pairs.sum((0, 1))
        self._sums[name] += pairs.sum((0, 1))
        for quarter, series in enumerate(QUARTERS):
            self._sums[series] += pairs[torch.bucketize(t, self._quarters) == quarter].sum(0)

    def add_up(self, total: Callable[[Tensor], Tensor], names: Iterable[str]) -> None:
        """Take in what other processes have added; ``total`` sums a tensor over all of them, ``names`` are those given to ``add``."""
        every = ("loss", *names, *QUARTERS)
        sums = total(torch.stack([self._sums[name] for name in every]))
        self._sums.update(zip(every, sums, strict=True))

    def write(self, step: int, seconds: float) -> None:
        """Append one line for everything added since the last, if there is anything."""
        means = {name: round(float(e / frames), 5) for name, (e, frames) in self._sums.items() if frames > 0}
        line = {"step": step, "seconds": round(seconds, 1)} | means
        self._sums.clear()
        if self.path is None or not means:
            return
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        log.info("dit: %s", " ".join(f"{k} {v:g}" for k, v in line.items()))

    def draw(self, path: Path) -> None:
        """Draw everything logged so far."""
        names = dict.fromkeys(name for line in self.lines for name in line if name not in ("step", "seconds"))
        series = {name: [(line["step"], line[name]) for line in self.lines if name in line] for name in names}
        draw_curve(path, f"{self.title}: velocity error by training step", series)


def _read_lines(path: Path) -> list[dict[str, float]]:
    """The lines of an older run's log; what it was writing as it ended, half a line, is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines
