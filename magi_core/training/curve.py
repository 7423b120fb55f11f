"""The loss curve as a PNG: one line a series, logarithmic loss, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from magi_core.files import atomic_write

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 540, 60, 130, 30, 40
PALETTE = ("#1f4e9c", "#c8452c", "#2a8c4a", "#8a4fb0", "#b8860b", "#3a8f9a", "#77777a", "#d05a9a", "#222222")


def draw_curve(path: Path, title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw named series of (step, loss) points, smoothed over 1/40 of their length, to a PNG file.

    Points without a positive, finite loss are left out; a plot without points shows the axes only.
    """
    from PIL import Image, ImageDraw

    kept = {name: [(x, y) for x, y in points if 0 < y < math.inf] for name, points in series.items()}
    every = [point for points in kept.values() for point in points] or [(0.0, 1.0)]
    last = max(x for x, _ in every) or 1.0
    low, high = min(y for _, y in every), max(y for _, y in every)
    bottom, top = math.log10(low) - 0.02, math.log10(high) + 0.02

    def place(x: float, y: float) -> tuple[float, float]:
        down = (top - math.log10(y)) / (top - bottom)
        return LEFT + (WIDTH - LEFT - RIGHT) * x / last, TOP + (HEIGHT - TOP - BOTTOM) * down

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 8), title, fill="black")
    for value in _ticks(low, high):
        _, y = place(0, value)
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill="#dddddd")
        draw.text((8, y - 6), f"{value:g}", fill="black")
    for part in range(5):
        x, _ = place(last * part / 4, high)
        draw.text((x - 10, HEIGHT - BOTTOM + 8), f"{last * part / 4:.0f}", fill="black")
    draw.rectangle((LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), outline="black")
    for row, (name, points) in enumerate(kept.items()):
        colour = PALETTE[row % len(PALETTE)]
        line = [place(x, y) for x, y in _smooth(points)]
        if len(line) > 1:
            draw.line(line, fill=colour, width=2)
        draw.text((WIDTH - RIGHT + 10, TOP + 16 * row), name, fill=colour)
    with atomic_write(path) as temporary:
        image.save(temporary)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the ends."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**d for d in decades for step in (1, 2, 5) if low <= step * 10.0**d <= high]


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each loss as the mean of its last len/40 neighbours."""
    width = max(1, len(points) // 40)
    return [
        (x, sum(y for _, y in points[max(0, i + 1 - width) : i + 1]) / min(width, i + 1))
        for i, (x, _) in enumerate(points)
    ]
