"""Does a long video stay what it is? An object is described in the first second, and from then on told only where to go, or in every second.

In every second the colour, the shape, the size and number of objects, and the direction are held against the simulator's clip. Where only
the first describes, nothing but what the model remembers of the seconds before tells it what to show, so whatever it loses is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import numpy as np

from magi_core.errors import MagiError
from magi_core.evaluation.cases import Case, Request, directions, lone_clip, switch
from magi_core.evaluation.intervals import Share
from magi_core.evaluation.measures import ChunkMeasure, is_whole, measure_chunk
from magi_core.evaluation.score import Generator
from magi_core.evaluation.tables import percent
from magi_core.evaluation.tracker import track
from magi_core.images import Frames
from magi_core.worlds.captions import ATTRIBUTES, describe
from magi_core.worlds.clips import CHUNK_FRAMES, WORLDS, world_called

SEED = 40_000_001
"""Of the held-back stories; training draws from other seeds."""
GO_ON = 0.5
"""Share of seconds that go on as the one before."""
SHOWN = (1, 2, 3, 5, 10, 15, 20, 30, 45, 60, 90, 120)
"""Seconds that have a line in the table, and the last."""
GOAL = 0.9
Described = Literal["first", "every"]
"""In which seconds it is told what is seen."""
LOOKS = frozenset(ATTRIBUTES) - {"motion", "direction"}


@dataclass(frozen=True)
class Drift:
    """Shares of videos that were right in one second, or in several."""

    colour: Share
    shape: Share
    whole: Share
    """One object, of the size that it had to have."""
    direction: Share


def build_stories(
    world: str, count: int, seconds: int, described: Described = "first", seed: int = SEED
) -> Iterator[Case]:
    """``count`` stories of so many seconds; equal arguments give equal ones. Raises MagiError for an unknown world."""
    drawn_from = world_called(world)
    ways = directions(drawn_from)
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        clip = lone_clip(drawn_from, ways[index % len(ways)], rng, hold=0)
        for _ in range(seconds - 1):
            phase = clip.phases[-1] if rng.random() < GO_ON else switch(drawn_from, clip, "direction", rng)
            clip = replace(clip, phases=(*clip.phases, phase))
        left_out = LOOKS if described == "first" else frozenset()
        told = [
            describe(clip, second, rng, omit=left_out if second else frozenset(), split="test").text
            for second in range(seconds)
        ]
        yield Case("drift", clip, ("direction",) * seconds, Request(tuple(told), int(rng.integers(2**31))))


def look(case: Case, frames: Frames, shapes: Sequence[str]) -> list[tuple[ChunkMeasure, bool]]:
    """What is right in every second of frames [24 * seconds, 64, 64, 3], and whether it shows one whole object; shapes: all that could be."""
    found = track(frames, case.clip.background)
    parts = [
        found.part(second * CHUNK_FRAMES, (second + 1) * CHUNK_FRAMES) for second in range(len(case.request.prompts))
    ]
    return [
        (measure_chunk(part, case.clip, phase, shapes), is_whole(part, case.clip))
        for part, phase in zip(parts, case.clip.phases, strict=True)
    ]


def score_drift(
    generator: Generator,
    world: str,
    count: int,
    seconds: int,
    described: Described = "first",
    progress: Callable[[int, int], None] | None = None,
) -> list[Drift]:
    """The figures of every second. progress: called with (videos done, videos in all). Raises MagiError for fewer than one of either."""
    for name, value in (("count", count), ("seconds", seconds)):
        if value < 1:
            raise MagiError(f"{name} is {value}; it must be at least 1")
    videos = []
    for done, case in enumerate(build_stories(world, count, seconds, described), 1):
        videos.append(look(case, generator([case.request])[0], WORLDS[world].shapes))
        if progress is not None:
            progress(done, count)
    return [drift_of([video[second] for video in videos]) for second in range(seconds)]


def drift_of(seen: Sequence[tuple[ChunkMeasure, bool]]) -> Drift:
    """Shares over seconds that were looked at."""
    return Drift(
        colour=Share.of(measure.colour for measure, _ in seen),
        shape=Share.of(measure.shape for measure, _ in seen),
        whole=Share.of(whole for _, whole in seen),
        direction=Share.of(measure.direction for measure, _ in seen),
    )


def drift_markdown(rows: Sequence[Drift], described: Described = "first") -> str:
    """One line for some of the seconds, the last among them; bold where a share misses its goal."""
    shown = [second for second in range(1, len(rows) + 1) if second in SHOWN or second == len(rows)]
    lines = ["| second | colour | shape | one object of its size | direction |", "|---|---|---|---|---|"]
    for second in shown:
        figures = (percent(getattr(rows[second - 1], field.name), GOAL) for field in fields(Drift))
        lines.append(f"| {second} | " + " | ".join(figures) + " |")
    told = {
        "first": "The object is described in the first second; later ones say only where it moves.",
        "every": "The object is described in every second.",
    }
    return "\n".join([*lines, "", f"Each figure: value [95 % interval] (n; goal). {told[described]}", ""])


def drift_json(rows: Sequence[Drift], settings: Mapping[str, object]) -> str:
    """All seconds, as right and total; and a curve of them as ``report_page`` draws it."""
    names = {"colour": "colour", "shape": "shape", "whole": "one object of its size"}
    series = {
        title: [
            [second, 100 * share.value, *(100 * bound for bound in share.interval)]
            for second, share in enumerate((getattr(row, name) for row in rows), 1)
            if second in SHOWN or second == len(rows)
        ]
        for name, title in names.items()
    }
    document = {
        "settings": settings,
        "seconds": [asdict(row) for row in rows],
        "curve": {"x": "second", "y": "%", "series": series},
    }
    return json.dumps(document, indent=1) + "\n"
