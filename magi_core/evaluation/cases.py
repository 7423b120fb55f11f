"""What a model is asked when it is scored: clips of a world with held-back seeds and wordings, as requests.

Three tasks: "text" (three chunks from prompts, each later prompt switching colour, direction or to a stop), "image" (one chunk
from a first image, the caption leaving out the colour) and "continuation" (three chunks after 24 true frames).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from magi_core.errors import MagiError
from magi_core.worlds.captions import describe
from magi_core.worlds.clips import (
    CHUNK_FRAMES,
    DIRECTIONS,
    IMAGE_FRAMES,
    Clip,
    Phase,
    World,
    render,
    room,
    sample_clip,
    sample_start,
    simulate,
    world_called,
)
from magi_core.worlds.shapes import Frames

TASKS = ("text", "image", "continuation")
SWITCHES = ("colour", "direction", "stop")
CONTINUED = ("slide", "still", "bounce", "fall")
_ROOM = 6.0  # px that a new direction should have


@dataclass(frozen=True)
class Request:
    """One video to generate: 24 frames per prompt, not counting the prefix."""

    prompts: tuple[str, ...]
    seed: int
    image: Frames | None = None
    """First image [64, 64, 3]; it is the first latent frame (4 equal frames) of the result."""
    prefix: Frames | None = None
    """Frames [24 * chunks, 64, 64, 3] that the result continues; they are no part of it."""


@dataclass(frozen=True)
class Case:
    """A request and the clip that it should give."""

    task: str
    clip: Clip
    """The whole story, the prefix included."""
    kinds: tuple[str, ...]
    """Per requested chunk: "first", a switch of ``SWITCHES``, or the continued motion of ``CONTINUED``."""
    request: Request

    @property
    def given(self) -> int:
        """Chunks of the clip that the request gives as prefix."""
        return 0 if self.request.prefix is None else len(self.request.prefix) // CHUNK_FRAMES


def build_cases(world: str, task: str, count: int, seed: int) -> Iterator[Case]:
    """``count`` cases of a task; equal arguments give equal cases, and each case has its own seed for the model.

    Raises MagiError for an unknown world or task.
    """
    drawn_from = world_called(world)
    if task not in TASKS:
        raise MagiError(f"task is '{task}'; choose one of {', '.join(TASKS)}")
    build = {"text": _text_case, "image": _image_case, "continuation": _continuation_case}[task]
    for index in range(count):
        rng = np.random.default_rng([seed, TASKS.index(task), index])
        yield build(drawn_from, index, rng, int(rng.integers(2**31)))


def _text_case(world: World, index: int, rng: np.random.Generator, seed: int) -> Case:
    clip = lone_clip(world, _plain_motion(world, index), rng, hold=0)
    kinds = ["first"]
    for _ in range(2):
        options = [kind for kind in SWITCHES if kind != "stop" or clip.phases[-1].motion != "still"]
        kinds.append(str(rng.choice(options)))
        clip = replace(clip, phases=(*clip.phases, switch(world, clip, kinds[-1], rng)))
    return Case("text", clip, tuple(kinds), Request(prompts_of(clip, 0, rng), seed))


def _image_case(world: World, index: int, rng: np.random.Generator, seed: int) -> Case:
    clip = lone_clip(world, _plain_motion(world, index), rng, hold=IMAGE_FRAMES)
    hidden = {"colour", "size", "background"} | ({"shape"} if rng.random() < 0.5 else set())
    prompt = describe(clip, 0, rng, omit=hidden, split="test").text
    return Case("image", clip, ("first",), Request((prompt,), seed, image=render(clip, 1)[0]))


def _continuation_case(world: World, index: int, rng: np.random.Generator, seed: int) -> Case:
    kind = CONTINUED[index % len(CONTINUED)]
    motion = str(rng.choice(directions(world))) if kind == "slide" else kind
    clip = lone_clip(world, motion, rng, hold=0)
    clip = replace(clip, phases=clip.phases * 4)
    return Case(
        "continuation", clip, (kind,) * 3, Request(prompts_of(clip, 1, rng), seed, prefix=render(clip, CHUNK_FRAMES))
    )


def lone_clip(world: World, motion: str, rng: np.random.Generator, hold: int) -> Clip:
    """One chunk of the world with the motion that is asked for; ``hold`` frames of it stand still first."""
    clip = sample_clip(world, 1, rng)
    phase = replace(clip.phases[0], motion=motion)
    return replace(clip, start=sample_start(clip.shape, clip.radius, motion, rng), phases=(phase,), hold=hold)


def _plain_motion(world: World, index: int) -> str:
    """Each direction and standing still in turn."""
    motions = (*directions(world), "still")
    return motions[index % len(motions)]


def directions(world: World) -> tuple[str, ...]:
    """In which an object of the world may slide."""
    return tuple(name for name, _ in world.motions if name in DIRECTIONS)


def switch(world: World, clip: Clip, kind: str, rng: np.random.Generator) -> Phase:
    """The second after a clip's last, with the change that one of ``SWITCHES`` names; a new direction has room."""
    last = clip.phases[-1]
    if kind == "stop":
        return replace(last, motion="still")
    if kind == "colour":
        return replace(last, colour=str(rng.choice([name for name in world.colours if name != last.colour])))
    position = simulate(clip)[-1]
    roomy = [name for name in directions(world) if name != last.motion and room(clip, position, name) >= _ROOM]
    return replace(last, motion=str(rng.choice(roomy)))


def prompts_of(clip: Clip, first: int, rng: np.random.Generator) -> tuple[str, ...]:
    """A held-back wording for each chunk of the clip from ``first`` on."""
    return tuple(describe(clip, chunk, rng, split="test").text for chunk in range(first, len(clip.phases)))
