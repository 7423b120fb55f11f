"""Decoys: histories that show another shape or size than the clip's first second did, and how it goes on, which is as that one.

What a model reads of a second that looks like the ones before it, it copies; that it drifted in between is nothing that true clips
show, and its own long videos (``rollouts``) in some of their seconds alone. A decoy says in every one that the anchor is right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from magi_core.training.objective import ROLLOUT_HISTORY, ROLLOUT_TARGETS
from magi_core.training.shards import make_shards
from magi_core.vae import ViTVAE
from magi_core.worlds.clips import CHUNK_FRAMES, WORLDS, Clip, render, simulate
from magi_core.worlds.shapes import BACKGROUNDS, COLOURS, Frames, bounds, draw

SECONDS = 1 + ROLLOUT_HISTORY + ROLLOUT_TARGETS
"""As of a rollout's sequences: the anchor, the seconds before what is asked, and that."""
KINDS = (("shape",), ("size",), ("shape", "size"))
SMALLER, LARGER = (0.75, 0.9), (1.1, 1.5)
"""Parts of the true radius."""
SHRUNK = 0.3
"""Share of the other sizes that are smaller: long videos lose more to growth."""


def make_decoys(folder: Path, vae: ViTVAE, world: str, clips: int, seed: int) -> None:
    """Write the shards of ``clips`` sequences that ``folder`` does not hold yet, latents [n, ``SECONDS``, C, F, h, w].

    Raises MagiError where it holds others.
    """
    shapes = WORLDS[world].shapes
    make_shards(folder, vae, world, clips, seed, SECONDS, lambda clip, rng: with_decoy(clip, shapes, rng))


def with_decoy(clip: Clip, shapes: tuple[str, ...], rng: np.random.Generator) -> Frames:
    """Frames [24 * SECONDS, 64, 64, 3] uint8 of the clip, where the last one to four seconds of its history show another shape, size or both."""
    changed = KINDS[int(rng.integers(len(KINDS)))]
    shape, radius = clip.shape, clip.radius
    if "shape" in changed:
        shape = str(rng.choice([name for name in shapes if name != clip.shape]))
    if "size" in changed:
        radius *= float(rng.uniform(*(SMALLER if rng.random() < SHRUNK else LARGER)))
    begin, end = int(rng.integers(1, 1 + ROLLOUT_HISTORY)), 1 + ROLLOUT_HISTORY
    colours = np.repeat([COLOURS[phase.colour] for phase in clip.phases[begin:end]], CHUNK_FRAMES, axis=0)
    frames, shown = render(clip), slice(CHUNK_FRAMES * begin, CHUNK_FRAMES * end)
    places = np.clip(simulate(clip)[shown], *bounds(shape, radius))
    frames[shown] = draw(shape, radius, places, colours, BACKGROUNDS[clip.background])
    return frames
