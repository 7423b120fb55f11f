"""A loaded model as the scorer sees it: requests in, frames out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from magi_core.config import Sampling
from magi_core.evaluation.cases import Request
from magi_core.evaluation.score import Generator
from magi_core.making import Making
from magi_core.pipeline import Magi
from magi_core.storyboard import Shot, Storyboard
from magi_core.worlds.shapes import Frames

Within = Callable[[Making], AbstractContextManager[object]]
"""In what a video is made, from its first step to its last: several devices, velocities used again, or nothing."""


def generator_of(magi: Magi, sampling: Sampling, within: Within = nullcontext) -> Generator:
    """One video after the other, a second per prompt, with ``sampling``."""

    def generate(requests: Sequence[Request]) -> list[Frames]:
        return [_generate(magi, sampling, within, request) for request in requests]

    return generate


def _generate(magi: Magi, sampling: Sampling, within: Within, request: Request) -> Frames:
    storyboard = Storyboard(tuple(Shot(prompt, 1.0) for prompt in request.prompts))
    generation = magi.generate(
        storyboard, image=request.image, video=request.prefix, seed=request.seed, sampling=sampling
    )
    with within(generation.making):
        return np.concatenate([chunk.frames for chunk in generation])
