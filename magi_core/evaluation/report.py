"""Scores as a Markdown table, as JSON and as a picture of what was generated, prompts above, truth below."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from magi_core.evaluation.cases import Case
from magi_core.evaluation.intervals import Median, Share
from magi_core.evaluation.score import Scores
from magi_core.evaluation.tables import percent
from magi_core.files import atomic_write
from magi_core.worlds.clips import CHUNK_FRAMES, render
from magi_core.worlds.shapes import Frames

SHARE_GOALS: dict[str, dict[str, float]] = {
    "text to video, first chunk": {"colour": 0.97, "shape": 0.90, "direction": 0.92, "strict": 0.60},
    "chunk after a prompt switch": {"colour": 0.97, "shape": 0.85, "direction": 0.95, "strict": 0.85},
    "switch: colour": {"colour": 0.92},
    "switch: direction": {"direction": 0.92},
    "switch: stop": {"direction": 0.92},
    "from a first image, caption without colour": {"colour": 0.97, "shape": 0.97, "direction": 0.80},
    "continuation of a clip": {"colour": 0.95, "shape": 0.80, "direction": 0.92},
}
ERROR_GOALS: dict[str, tuple[float, ...]] = {"slide": (1.5, 3.0, 5.0), "still": (1.0, 1.0, 1.0)}
WHOLE_GOAL = 0.95

_QUESTIONS = ("colour", "shape", "direction", "strict")
_THUMBNAIL = 80  # px
_PER_CHUNK = 4  # frames shown of each chunk
_LINE = 12  # px of a line of text


def write_report(scores: Scores, folder: Path, made_with: Mapping[str, object]) -> tuple[Path, Path, Path]:
    """Write ``scores.md``, ``scores.json`` and ``scores.png`` into ``folder``, each in full or not at all; return their paths.

    made_with: the model and its settings, for the JSON.
    """
    table, data, picture = (Path(folder) / f"scores.{ending}" for ending in ("md", "json", "png"))
    with atomic_write(table) as temporary:
        temporary.write_text(markdown(scores), encoding="utf-8")
    with atomic_write(data) as temporary:
        temporary.write_text(as_json(scores, made_with) + "\n", encoding="utf-8")
    with atomic_write(picture) as temporary:
        contact_sheet(scores.samples).save(temporary, format="PNG", optimize=True)
    return table, data, picture


# ---- figures ---------------------------------------------------------------------------------------------------------


def markdown(scores: Scores) -> str:
    """The table of shares, the table of errors and the two counts, with n and 95 % intervals; a missed goal is set in bold."""
    lines = [
        "| right per chunk | " + " | ".join(_QUESTIONS) + " |",
        "|---|---|---|---|---|",
        *(
            f"| {row.name} | "
            + " | ".join(percent(getattr(row, name), SHARE_GOALS.get(row.name, {}).get(name)) for name in _QUESTIONS)
            + " |"
            for row in scores.shares
        ),
        "",
        "| median error, px, after a prefix of 24 frames | chunk 1 | chunk 2 | chunk 3 |",
        "|---|---|---|---|",
    ]
    for row in scores.errors:
        goals = ERROR_GOALS.get(row.name, (math.inf,) * len(row.model))
        figures = (_median(median, goal) for median, goal in zip(row.model, goals, strict=True))
        lines.append(f"| {row.name} (n={row.model[0].total}) | " + " | ".join(figures) + " |")
        for name, medians in row.baselines.items():
            lines.append(f"| {row.name}, {name} | " + " | ".join(f"{median.value:.1f}" for median in medians) + " |")
    lines += [
        "",
        f"- One object, whole inside the frame: {percent(scores.whole, WHOLE_GOAL)}",
        f"- Something wraps around the border: {percent(scores.wraps, None)}",
        f"- Time: {scores.seconds_per_chunk:.2f} s per chunk",
        "",
        "Each figure: value [95 % interval] (n; goal). World "
        f"'{scores.settings.world}', seed {scores.settings.seed}, wordings and seeds that training never sees.",
        "",
    ]
    return "\n".join(lines)


def _median(median: Median, goal: float) -> str:
    value = f"**{median.value:.2f}**" if median.value > goal else f"{median.value:.2f}"
    asked = "" if math.isinf(goal) else f" (goal {goal:g})"
    return f"{value} [{median.low:.2f}, {median.high:.2f}]{asked}"


def as_json(scores: Scores, made_with: Mapping[str, object]) -> str:
    """All figures without the pictures; shares as right, total, value and interval (fractions), errors in pixels."""

    def share(value: Share) -> dict[str, object]:
        known = {"value": value.value, "interval": value.interval} if value.total else {}
        return {"right": value.right, "total": value.total, **known}

    return json.dumps(
        {
            "settings": {**made_with, **asdict(scores.settings)},
            "shares": [
                {"name": row.name, **{name: share(getattr(row, name)) for name in _QUESTIONS}} for row in scores.shares
            ],
            "errors": [asdict(row) for row in scores.errors],
            "whole": share(scores.whole),
            "wraps": share(scores.wraps),
            "seconds_per_chunk": scores.seconds_per_chunk,
        },
        indent=1,
    )


# ---- picture ---------------------------------------------------------------------------------------------------------


def contact_sheet(samples: tuple[tuple[Case, Frames], ...]) -> Image.Image:
    """One strip per generation, four frames of each chunk, its prompt above it; image and continuation with the truth below."""
    strips = [_strip(case, frames) for case, frames in samples]
    if not strips:
        return Image.new("RGB", (_THUMBNAIL, _THUMBNAIL))
    sheet = Image.new(
        "RGB", (max(strip.width for strip in strips), sum(strip.height + 6 for strip in strips)), (32, 32, 32)
    )
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + 6
    return sheet


def _strip(case: Case, frames: Frames) -> Image.Image:
    shown = frames if case.request.prefix is None else np.concatenate([case.request.prefix, frames])
    rows = [shown] if case.task == "text" else [shown, render(case.clip)]
    labels = ("given",) * case.given + case.request.prompts
    width = _PER_CHUNK * _THUMBNAIL
    wrapped = [textwrap.wrap(label, width // 6 - 1) for label in labels]
    header = _LINE * max(map(len, wrapped)) + 4
    strip = Image.new("RGB", (width * len(labels), header + _THUMBNAIL * len(rows)), (32, 32, 32))
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default()
    for chunk, lines in enumerate(wrapped):
        for line, text in enumerate(lines):
            draw.text((chunk * width + 4, line * _LINE + 1), text, fill=(255, 255, 255), font=font)
    picks = np.linspace(0, CHUNK_FRAMES - 1, _PER_CHUNK).astype(int)
    for row, video in enumerate(rows):
        for chunk in range(len(labels)):
            for place, frame in enumerate(video[chunk * CHUNK_FRAMES + picks]):
                thumbnail = Image.fromarray(frame).resize((_THUMBNAIL - 2, _THUMBNAIL - 2), Image.Resampling.BILINEAR)
                strip.paste(thumbnail, (chunk * width + place * _THUMBNAIL + 1, header + row * _THUMBNAIL + 1))
    return strip
