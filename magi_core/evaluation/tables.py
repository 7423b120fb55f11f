"""Figures as text: a share with its interval and goal; Physics-IQ's results as Markdown and JSON, for the benchmark's own videos and for the worlds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from magi_core.evaluation.intervals import Share
from magi_core.evaluation.physics_iq import PhysicsScore, View, physics_score

_HEAD = "| | Physics-IQ | Verified | spatial IoU | spatio-temporal | weighted | MSE |\n|---|---|---|---|---|---|---|"
_NOTE = (
    "Scores: value [95 % interval over views]; IoU and MSE are means, before they are divided by the two takes' own."
)


def percent(share: Share, goal: float | None = None) -> str:
    """A share with its 95 % interval, count and goal (0..1); bold where the goal is missed."""
    if not share.total:
        return "-"
    low, high = share.interval
    asked = "" if goal is None else f"; goal {100 * goal:.0f}"
    value = f"{100 * share.value:.1f} %"
    if goal is not None and share.value < goal:
        value = f"**{value}**"
    return f"{value} [{100 * low:.0f}, {100 * high:.0f}] (n={share.total}{asked})"


def physics_markdown(rows: Mapping[str, PhysicsScore], notes: Sequence[str] = ()) -> str:
    """One line a score, by name, and under the table what ``notes`` say."""
    lines = [_HEAD]
    for name, score in rows.items():
        lines.append(f"| {name} (n={score.views}) | {_figure(score.original, score.original_interval)} | "
                     f"{_figure(score.verified, score.verified_interval)} | {_measures(score)} |")  # fmt: skip
    return "\n".join([*lines, "", _NOTE, *notes, ""])


def benchmark_rows(views: Sequence[View]) -> dict[str, PhysicsScore]:
    """All views, each category of events, and what the two takes themselves reach."""
    categories = sorted({view.category for view in views} - {""})
    by_category = {name: physics_score([view for view in views if view.category == name]) for name in categories}
    takes = physics_score([replace(view, model=view.physical) for view in views])
    return {"all": physics_score(views), **by_category, "the other take": takes}


def physics_json(
    rows: Mapping[str, PhysicsScore],
    settings: Mapping[str, object],
    views: Sequence[View] = (),
    curve: Mapping[str, object] | None = None,
) -> str:
    document = {
        "settings": settings,
        "scores": {name: asdict(score) for name, score in rows.items()},
        "views": [asdict(view) for view in views],
    }
    return json.dumps(document | ({"curve": curve} if curve else {}), indent=1) + "\n"


def kv_curve(ranges: Mapping[int, PhysicsScore]) -> dict[str, object]:
    """Scores over how many chunks each denoised chunk sees, as ``report_page`` draws curves."""
    series = {
        "Physics-IQ": [[chunks, score.original, *score.original_interval] for chunks, score in ranges.items()],
        "Verified": [[chunks, score.verified, *score.verified_interval] for chunks, score in ranges.items()],
    }
    return {"x": "KV range: chunks seen, itself among them", "y": "score", "series": series}


def _figure(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1f} [{interval[0]:.0f}, {interval[1]:.0f}]"


def _measures(score: PhysicsScore) -> str:
    mine = score.model
    return f"{mine.spatial:.3f} | {mine.spatiotemporal:.3f} | {mine.weighted:.3f} | {mine.mse:.4f}"
