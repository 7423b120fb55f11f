"""A loaded model as a generator for the scorer: the same way that ``magi generate`` goes, one video after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from magi_core.evaluation.cases import Request
from magi_core.evaluation.score import Generator
from magi_core.pipeline import Magi, Wishes
from magi_core.storyboard import Shot, Storyboard
from magi_core.training.shapes import Frames


def model_generator(magi: Magi, wishes: Wishes | None = None) -> Generator:
    """The generator for ``score``; wishes: sampling and so on, the seed is each request's own."""
    wishes = wishes or Wishes()

    def one(request: Request) -> Frames:
        chunks = magi.generate(
            Storyboard(tuple(Shot(prompt, seconds=1.0) for prompt in request.prompts)),
            image=request.image,
            video=request.prefix,
            wishes=wishes,
            seed=request.seed,
        )
        return np.concatenate([chunk.frames for chunk in chunks])

    def generate(requests: Sequence[Request]) -> list[Frames]:
        return [one(request) for request in requests]

    return generate
