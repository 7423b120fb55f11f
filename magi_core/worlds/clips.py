"""Synthetic worlds: one coloured shape that slides, stops, bounces or falls, with exact truth for every frame.

Notable:

* Every motion is a closed formula of time (clamped line, folded line, ballistic arcs), so a clip is simulated exactly, without
  integration error, and goes on beyond its last chunk by asking for more frames.
* Frame ``f`` is made by the phase of chunk ``f // 24``: position[24] - position[23] is already the new motion's step, and frame 24
  is the first in the new colour. A prompt switch therefore has one right answer per frame.
* A position is the centroid of the shape, in the pixels of ``shapes``; walls are where the shape's own outline touches the frame,
  so the object is always whole inside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from magi_core.errors import MagiError
from magi_core.worlds.shapes import BACKGROUNDS, COLOURS, SHAPES, Floats, Frames, bounds, draw

CHUNK_FRAMES = 24
IMAGE_FRAMES = 4  # one latent frame: what a first image becomes

GRAVITY = 0.07  # px / frame^2
RESTITUTION = 0.85
BOUNCE_SPEEDUP = 1.3  # a bouncing object is this much faster than a sliding one
_REST_SPEED = 0.05  # px / frame; a slower landing ends the fall

_DIAGONAL = math.sqrt(0.5)
DIRECTIONS: dict[str, tuple[float, float]] = {
    "right": (1.0, 0.0),
    "left": (-1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-right": (_DIAGONAL, -_DIAGONAL),
    "up-left": (-_DIAGONAL, -_DIAGONAL),
    "down-right": (_DIAGONAL, _DIAGONAL),
    "down-left": (-_DIAGONAL, _DIAGONAL),
}
MOTIONS: tuple[str, ...] = (*DIRECTIONS, "still", "bounce", "fall")


# ---- worlds and clips ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """What may happen: the distribution that clips are drawn from."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    radii: tuple[float, ...]
    """Radius in pixels; a caption names the size only where a world has several."""
    speeds: tuple[float, ...]
    """Sliding speed in pixels per frame."""
    backgrounds: tuple[str, ...]
    motions: tuple[tuple[str, float], ...]
    """(motion, weight), of the first chunk and of a change."""
    colour_change: float = 0.35
    """Share of chunk boundaries at which the colour alone changes."""
    motion_change: float = 0.45
    """Share of chunk boundaries at which the motion alone changes."""
    both_change: float = 0.10
    """Share at which both change; what remains of 1 goes on unchanged."""
    image_share: float = 0.25
    """Share of clips whose first latent frame stands still, as a first image does."""


_STRAIGHT = ("right", "left", "up", "down")
NARROW = World(
    shapes=("circle", "square", "triangle"),
    colours=tuple(COLOURS),
    radii=(9.0,),
    speeds=(0.7,),
    backgrounds=("black",),
    motions=(*((name, 0.17) for name in _STRAIGHT), ("still", 0.14), ("bounce", 0.09), ("fall", 0.09)),
)
FULL = World(
    shapes=SHAPES,
    colours=tuple(COLOURS),
    radii=(7.0, 9.0, 11.0),
    speeds=(0.35, 0.7, 1.2),
    backgrounds=tuple(BACKGROUNDS),
    motions=(*((name, 0.08) for name in DIRECTIONS), ("still", 0.12), ("bounce", 0.12), ("fall", 0.12)),
)
WORLDS: dict[str, World] = {"narrow": NARROW, "full": FULL}


def world_called(name: str) -> World:
    """One of ``WORLDS``; raises MagiError for another name."""
    if name not in WORLDS:
        raise MagiError(f"world is '{name}'; choose one of {', '.join(WORLDS)}")
    return WORLDS[name]


@dataclass(frozen=True)
class Phase:
    """What the object looks like and does during one chunk of 24 frames."""

    colour: str
    motion: str
    heading: float = 0.0
    """Direction in radians in which "bounce" sets off, where this chunk begins it; unused by other motions."""


@dataclass(frozen=True)
class Clip:
    """One object's whole story; everything that simulation and rendering need."""

    shape: str
    radius: float
    speed: float
    background: str
    start: tuple[float, float]
    """Centroid (x, y) in frame 0."""
    phases: tuple[Phase, ...]
    hold: int = 0
    """Frames at the start that stand still (4 = one latent frame, as after a first image)."""

    @property
    def frames(self) -> int:
        return CHUNK_FRAMES * len(self.phases)


def sample_start(shape: str, radius: float, motion: str, rng: np.random.Generator) -> tuple[float, float]:
    """A centroid (x, y) from which the motion can be seen: 85 % have at least 15 px of room; a fall begins in the upper half."""
    low, high = bounds(shape, radius)
    if motion == "fall":
        high[1] = (low[1] + high[1]) / 2
    elif motion in DIRECTIONS and rng.random() < 0.85:
        room = 15.0 * np.array(DIRECTIONS[motion])
        low, high = low - np.minimum(room, 0.0), high - np.maximum(room, 0.0)
    x, y = rng.uniform(low, high)
    return float(x), float(y)


def sample_clip(world: World, chunks: int, rng: np.random.Generator) -> Clip:
    """Draw a clip of ``chunks`` chunks (24 frames each). Equal generators give equal clips."""
    shape, radius = str(rng.choice(world.shapes)), float(rng.choice(world.radii))
    phase = _first_phase(world, rng)
    clip = Clip(
        shape=shape,
        radius=radius,
        speed=float(rng.choice(world.speeds)),
        background=str(rng.choice(world.backgrounds)),
        start=sample_start(shape, radius, phase.motion, rng),
        phases=(phase,),
        hold=IMAGE_FRAMES if rng.random() < world.image_share else 0,
    )
    for _ in range(chunks - 1):
        clip = replace(clip, phases=(*clip.phases, _next_phase(world, clip, rng)))
    return clip


def _first_phase(world: World, rng: np.random.Generator) -> Phase:
    names, weights = zip(*world.motions, strict=True)
    motion = str(rng.choice(names, p=np.array(weights) / sum(weights)))
    return Phase(str(rng.choice(world.colours)), motion, float(rng.uniform(0, 2 * math.pi)))


def _next_phase(world: World, clip: Clip, rng: np.random.Generator) -> Phase:
    last = clip.phases[-1]
    kind, changes = rng.random(), np.cumsum([world.colour_change, world.motion_change, world.both_change])
    colour, motion = last.colour, last.motion
    if kind < changes[0] or changes[1] <= kind < changes[2]:
        colour = str(rng.choice([name for name in world.colours if name != colour]))
    if changes[0] <= kind < changes[2]:
        position = simulate(clip)[-1]
        options = [(name, weight) for name, weight in world.motions if name != motion]
        weights = np.array([weight * (1.0 if room(clip, position, name) >= 6.0 else 0.25) for name, weight in options])
        motion = options[int(rng.choice(len(options), p=weights / weights.sum()))][0]
    return Phase(colour, motion, float(rng.uniform(0, 2 * math.pi)))


# ---- motion ----------------------------------------------------------------------------------------------------------


def room(clip: Clip, position: Floats, motion: str) -> float:
    """Pixels that the object at ``position`` [2] can still travel: along a direction to the first wall, down to the floor for
    "fall", unlimited (inf) for the others."""
    direction = np.array(DIRECTIONS["down"] if motion == "fall" else DIRECTIONS.get(motion, (0.0, 0.0)))
    low, high = bounds(clip.shape, clip.radius)
    wall = np.where(direction > 0, high, low)
    moving = direction != 0
    return float(np.min((wall - position)[moving] / direction[moving], initial=math.inf))


def simulate(clip: Clip, frames: int | None = None) -> Floats:
    """Exact centroids (x, y) [T, 2] in pixels, for the clip's own frames or for ``frames``, past the end in the last motion.

    Chunks of one unbroken motion are one run: a bounce or a fall goes on across chunk boundaries. Slides stop at the wall (a
    diagonal one slides along it), "bounce" reflects without loss, "fall" starts at rest and loses 15 % of its speed a landing.
    """
    frames = clip.frames if frames is None else frames
    centroids = np.empty((frames, 2))
    begin, position = max(clip.hold, 1), np.array(clip.start)
    centroids[:begin] = clip.start
    for index, phase in enumerate(clip.phases):
        if index and phase.motion == clip.phases[index - 1].motion:
            continue  # part of the run that is already simulated
        end = _run_end(clip, index, frames)
        if end > begin:
            centroids[begin:end] = _run(clip, phase, position, np.arange(1.0, end - begin + 1))
            begin, position = end, centroids[end - 1]
    return centroids


def _run_end(clip: Clip, index: int, frames: int) -> int:
    """First frame after the unbroken motion that begins in chunk ``index``."""
    for later in range(index + 1, len(clip.phases)):
        if clip.phases[later].motion != clip.phases[index].motion:
            return min(CHUNK_FRAMES * later, frames)
    return frames


def _run(clip: Clip, phase: Phase, origin: Floats, time: Floats) -> Floats:
    """Centroids [n, 2] at ``time`` [n] frames after the object was at ``origin`` [2]."""
    low, high = bounds(clip.shape, clip.radius)
    if phase.motion == "still":
        return np.tile(origin, (len(time), 1))
    if phase.motion == "bounce":
        velocity = BOUNCE_SPEEDUP * clip.speed * np.array([math.cos(phase.heading), math.sin(phase.heading)])
        span = high - low
        unfolded = np.mod(origin - low + time[:, None] * velocity, 2 * span)
        folded: Floats = low + np.minimum(unfolded, 2 * span - unfolded)
        return folded
    if phase.motion == "fall":
        fallen = np.tile(origin, (len(time), 1))
        fallen[:, 1] = high[1] - _height(float(high[1] - origin[1]), time)
        return fallen
    if phase.motion in DIRECTIONS:
        line: Floats = np.clip(origin + time[:, None] * clip.speed * np.array(DIRECTIONS[phase.motion]), low, high)
        return line
    raise MagiError(f"motion is '{phase.motion}'; choose one of {', '.join(MOTIONS)}")


def _height(start: float, time: Floats) -> Floats:
    """Height above the floor [n] of a body dropped from ``start`` pixels, bouncing until its landings are too slow to see."""
    start = max(start, 0.0)
    height: Floats = np.maximum(start - 0.5 * GRAVITY * time**2, 0.0)
    landing, speed = math.sqrt(2 * start / GRAVITY), math.sqrt(2 * GRAVITY * start) * RESTITUTION
    while speed > _REST_SPEED and landing < time[-1]:
        since = time - landing
        height = np.maximum(height, np.where(since > 0, speed * since - 0.5 * GRAVITY * since**2, 0.0))
        landing, speed = landing + 2 * speed / GRAVITY, speed * RESTITUTION
    return height


# ---- pictures --------------------------------------------------------------------------------------------------------


def render(clip: Clip, frames: int | None = None) -> Frames:
    """Frames [T, 64, 64, 3] uint8 of the clip, or of ``frames`` frames (past the end in the last phase)."""
    centroids = simulate(clip, frames)
    chunk = np.minimum(np.arange(len(centroids)) // CHUNK_FRAMES, len(clip.phases) - 1)
    colours = np.array([COLOURS[phase.colour] for phase in clip.phases])[chunk]
    return draw(clip.shape, clip.radius, centroids, colours, BACKGROUNDS[clip.background])
