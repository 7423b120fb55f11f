"""Physics-IQ's protocol on the synthetic worlds: 3 seconds given, 5 predicted, two takes that differ in their sensor's noise.

As in the benchmark little has happened when the prediction begins: the object stands still for two seconds and moves (slides,
bounces or falls) in the third. Frames are compared at their full 64 x 64 pixels, and masks as they are, without a video file.

Notable: what a model is worth is seen beside baselines, which know the true last frames. The curve over KV ranges changes nothing but how
many chunks each denoised chunk looks back on: at range 1 it sees itself alone, so that only the prompt tells it what to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from magi_core.config import Sampling
from magi_core.errors import MagiError
from magi_core.evaluation.baselines import BASELINES
from magi_core.evaluation.cases import Request, directions, lone_clip, prompts_of
from magi_core.evaluation.physics_iq import PhysicsScore, Seen, View, agreement, motion_masks, physics_score
from magi_core.evaluation.score import Generator
from magi_core.images import Frames
from magi_core.worlds.clips import CHUNK_FRAMES, Clip, render, simulate, world_called
from magi_core.worlds.shapes import BACKGROUNDS, COLOURS, draw

GIVEN, PREDICTED = 3, 5  # chunks of a second
NOISE = 2.0  # standard deviation of the sensor's noise, of 255
MOTIONS = ("slide", "bounce", "fall")
SEED = 30_000_001
"""Of the held-back events; training draws from other seeds."""


@dataclass(frozen=True)
class Event:
    """One event, its two takes and what a model is asked."""

    motion: str
    clip: Clip
    takes: tuple[Frames, Frames]
    """All 8 seconds, uint8 [192, 64, 64, 3]."""
    request: Request


def build_events(world: str, count: int, seed: int = SEED) -> Iterator[Event]:
    """``count`` events, the motions in turn; equal arguments give equal events. Raises MagiError for an unknown world and for none."""
    drawn_from = world_called(world)
    if count < 1:
        raise MagiError(f"count is {count}; it must be at least 1")
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        kind = MOTIONS[index % len(MOTIONS)]
        clip = lone_clip(drawn_from, str(rng.choice(directions(drawn_from))) if kind == "slide" else kind, rng, hold=0)
        moving = clip.phases[0]
        phases = (replace(moving, motion="still"),) * (GIVEN - 1) + (moving,) * (1 + PREDICTED)
        clip = replace(clip, phases=phases)
        frames = render(clip)
        first, second = (_filmed(frames, rng) for _ in range(2))
        request = Request(prompts_of(clip, GIVEN, rng), int(rng.integers(2**31)), prefix=first[: GIVEN * CHUNK_FRAMES])
        yield Event(kind, clip, (first, second), request)


def score_events(
    generator: Generator, world: str, count: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, PhysicsScore]:
    """The model's score over all events and by motion ("slide", "bounce", "fall").

    generator: see ``score.Generator``. progress: called with (events done, events in all).
    """
    views = []
    for done, event in enumerate(build_events(world, count), 1):
        views.append(compare(event, generator([event.request])[0]))
        if progress is not None:
            progress(done, count)
    return _scores(views)


def score_baselines(world: str, count: int) -> dict[str, dict[str, PhysicsScore]]:
    """Scores as of ``score_events``, of each baseline: object frozen, constant velocity, and the second take as a prediction."""
    events = list(build_events(world, count))
    found = {name: _scores([compare(event, forecast(event, name)) for event in events]) for name in BASELINES}
    return found | {"the other take": _scores([compare(event, event.takes[1][_start() :]) for event in events])}


def from_last_frame(generator: Generator) -> Generator:
    """The same model told only the last given picture: image to video in place of continuation."""

    def generate(requests: Sequence[Request]) -> Sequence[Frames]:
        return generator([_told_the_last_frame(request) for request in requests])

    return generate


def _told_the_last_frame(request: Request) -> Request:
    return request if request.prefix is None else replace(request, prefix=None, image=request.prefix[-1])


def forecast(event: Event, baseline: str) -> Frames:
    """The predicted seconds [120, 64, 64, 3] of a baseline of ``BASELINES``, drawn as the world draws."""
    truth, clip = simulate(event.clip), event.clip
    centroids = BASELINES[baseline](truth[: _start()], PREDICTED * CHUNK_FRAMES)
    colours = np.tile(np.array(COLOURS[clip.phases[-1].colour]), (len(centroids), 1))
    return draw(clip.shape, clip.radius, centroids, colours, BACKGROUNDS[clip.background])


def kv_range(sampling: Sampling, chunks: int) -> Sampling:
    """The settings with every denoised chunk seeing ``chunks`` chunks, itself among them, at every noise level, and no anchor beside them."""
    return sampling.changed(kv_ranges=(chunks,) * len(sampling.noise2clean_kvrange), anchor=False)


def compare(event: Event, predicted: Frames) -> View:
    """A prediction [120, 64, 64, 3] against take 1, beside take 2."""
    real, other = (_seen(take[_start() :]) for take in event.takes)
    return View(event.motion, event.motion, agreement(real, _seen(predicted)), agreement(real, other))


def _seen(frames: Frames) -> Seen:
    return Seen(frames, np.stack(list(motion_masks(frames))) > 127)


def _scores(views: list[View]) -> dict[str, PhysicsScore]:
    parts = {motion: [view for view in views if view.category == motion] for motion in MOTIONS}
    return {"all": physics_score(views)} | {name: physics_score(part) for name, part in parts.items() if part}


def _start() -> int:
    return GIVEN * CHUNK_FRAMES


def _filmed(frames: Frames, rng: np.random.Generator) -> Frames:
    noise = rng.normal(0, NOISE, frames.shape)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)
