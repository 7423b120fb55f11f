"""Long videos of the model's own, and how each of their seconds should have gone on: what a video loses slowly, training shows here.

A long video drifts by small mistakes that each second copies from the ones before it, so nothing that is drawn from true clips looks like
its history. A rollout is such a history, made by the sampler itself; where its object was found at the end of a second, the simulator goes
on from there, with the looks that the story asks for (dataset aggregation: Ross et al. 2011).

Notable: a video whose first second is not what was asked teaches nothing and is left out, for the anchor would show something else than
the target. So is a second behind a fall, whose speed the frames do not tell the simulator.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magi_core.checkpoint.find import CheckpointFiles
from magi_core.denoise.storage import fingerprint
from magi_core.errors import MagiError
from magi_core.evaluation.measures import is_whole, measure_chunk
from magi_core.evaluation.tracker import Track, track
from magi_core.making import Making
from magi_core.parts import Parts
from magi_core.plan import plan
from magi_core.storyboard import Shot, Storyboard
from magi_core.training.objective import ROLLOUT_HISTORY, ROLLOUT_TARGETS
from magi_core.training.practice import PRACTICE
from magi_core.training.shards import WORDINGS, encode_windows, missing_shards, origin, put_into_words, save_shard
from magi_core.vae import frames_to_video
from magi_core.vae.chunks import decode_frames
from magi_core.worlds.clips import CHUNK_FRAMES, WORLDS, Clip, Phase, render, sample_clip

SHARD = 20
"""Rollouts whose sequences make a file."""
SECONDS = 20
"""Of a rollout."""
EVERY = 2
"""Of so many seconds one is gone on from; those between look nearly the same."""
HEADING_FRAMES = 3
"""Over so many frames it is measured where a bouncing object flies."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Rollout:
    """A video of the model's own: its story, what each second was told in several wordings, latents [seconds, C, F, h, w] and what they show."""

    story: Clip
    wordings: Sequence[Sequence[str]]
    latents: Tensor
    found: Track


def make_rollout(magi: Parts, world: str, rng: np.random.Generator) -> Rollout:
    """A video of ``SECONDS`` seconds, told as training tells its clips; its story is longer by the seconds that targets need."""
    practice = PRACTICE[world]
    story = replace(sample_clip(practice.world, SECONDS + ROLLOUT_TARGETS - 1, rng), hold=0)
    wordings = [put_into_words(story, practice, rng) for _ in range(WORDINGS)]
    latents = make_video(magi, wordings[0][:SECONDS], int(rng.integers(2**31)))
    frames = np.concatenate(
        [decode_frames(magi.vae, chunk[None], magi.config.scale_factor, magi.tiling) for chunk in latents]
    )
    return Rollout(story, wordings, latents, track(frames, story.background))


def make_video(magi: Parts, prompts: Sequence[str], seed: int) -> Tensor:
    """Latents [seconds, C, F, h, w] of a video with a second for every prompt."""
    config = magi.config
    height, width = (side // magi.vae_config.patch_size for side in (config.height, config.width))
    making = Making.start(magi.dit, config.sampling, height=height, width=width, seed=seed, special=magi.special_tokens)
    layout = plan(Storyboard(tuple(Shot(prompt, 1.0) for prompt in prompts)), config.fps, chunk_frames=CHUNK_FRAMES)
    captions = magi.encode_prompts(layout.prompts)
    making.add(layout, [captions[prompt] for prompt in layout.prompts], special=magi.special_tokens)
    return torch.cat([finished.latents for finished in making.chunks()])


def is_what_was_asked(rollout: Rollout, world: str) -> bool:
    """Whether the first second shows one object of the story's colour, shape and size."""
    first = rollout.found.part(0, CHUNK_FRAMES)
    seen = measure_chunk(first, rollout.story, rollout.story.phases[0], WORLDS[world].shapes)
    return seen.colour and seen.shape and is_whole(first, rollout.story)


def continued(rollout: Rollout, second: int) -> Clip | None:
    """The simulator's clip of the ``ROLLOUT_TARGETS`` seconds from ``second`` on, behind one that stands still where the object was found
    at the end of the second before; None where that cannot be said."""
    story, found, last = rollout.story, rollout.found, CHUNK_FRAMES * second - 1
    phases = story.phases[second : second + ROLLOUT_TARGETS]
    before = story.phases[second - 1]
    goes_on = phases[0].motion == before.motion
    recent = slice(last - HEADING_FRAMES, last + 1)
    if (found.pieces[recent] != 1).any() or (goes_on and before.motion == "fall"):
        return None
    if goes_on and before.motion == "bounce":
        x, y = found.centroid[last] - found.centroid[last - HEADING_FRAMES]
        phases = (replace(phases[0], heading=math.atan2(y, x)), *phases[1:])
    stands = Phase(before.colour, "still")
    x, y = found.centroid[last]
    return replace(story, start=(float(x), float(y)), phases=(stands, *phases))


def sequences(magi: Parts, rollout: Rollout) -> Iterator[tuple[Tensor, list[list[str]]]]:
    """What training is shown of a rollout: latents [1 + ROLLOUT_HISTORY + ROLLOUT_TARGETS, C, F, h, w], which are the first second, the seconds
    before one that is gone on from, and the true ones from there on; with the wordings of each."""
    for second in range(ROLLOUT_HISTORY + 1, SECONDS + 1, EVERY):
        clip = continued(rollout, second) if second + ROLLOUT_TARGETS <= len(rollout.story.phases) else None
        if clip is None:
            continue
        frames = render(clip)[CHUNK_FRAMES:]
        targets = encode_windows(magi.vae, frames_to_video(torch.from_numpy(frames)))[0]
        own = rollout.latents[[0, *range(second - ROLLOUT_HISTORY, second)]]
        shown = [0, *range(second - ROLLOUT_HISTORY, second + ROLLOUT_TARGETS)]
        yield torch.cat([own, targets]), [[words[place] for place in shown] for words in rollout.wordings]


def make_rollouts(folder: Path, magi: Parts, world: str, videos: int, seed: int) -> None:
    """Make and write the shards of ``videos`` rollouts that ``folder`` does not hold yet.

    Raises MagiError for a model that does nothing yet of what it is asked, and where the folder holds others.
    """
    for path, indices in missing_shards(folder, videos, SHARD, lambda count: made_from(magi, world, count, seed)):
        write_rollouts(path, magi, world, indices, seed)
        log.info("rollouts: %d of %d", indices.stop, videos)


def check_anchor(files: CheckpointFiles) -> None:
    """Raise MagiError for a model whose videos have no anchor, which is what a rollout's seconds are mended after."""
    if not files.config.sampling.anchor:
        raise MagiError(
            f"{files.name}'s videos have no anchor (runtime_config.anchor), and rollouts are mended after one; "
            "go on from a model that has it, say nano-full, or leave the rollouts out"
        )


def made_from(magi: Parts, world: str, videos: int, seed: int) -> dict[str, str]:
    """What a shard of ``videos`` rollouts is made from, as its metadata say it."""
    return origin(magi.vae, world, videos, seed, SECONDS) | {"model": fingerprint(magi.dit)}


def write_rollouts(path: Path, magi: Parts, world: str, indices: Sequence[int], seed: int) -> None:
    """Make the rollouts ``indices`` and write what training is shown of them to one file, of the form of ``shards``.

    Raises MagiError where that is nothing."""
    latents, wordings = [], []
    for index in indices:
        rollout = make_rollout(magi, world, np.random.default_rng([seed, index]))
        if is_what_was_asked(rollout, world):
            for shown, told in sequences(magi, rollout):
                latents.append(shown.half())
                wordings.append(told)
    if not latents:
        raise MagiError(
            f"none of {len(indices)} videos of {magi.files.name} begins as it was asked; train it longer before it is shown its own"
        )
    images = [False] * len(latents)
    save_shard(path, torch.stack(latents), images, wordings, made_from(magi, world, len(indices), seed))
