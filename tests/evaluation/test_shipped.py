"""The models that are part of the repository are what their names say, and do as they are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import magi_core
from magi_core.evaluation.generator import generator_of
from magi_core.evaluation.measures import STILL_TRAVEL
from magi_core.evaluation.score import ScoreSettings, score
from magi_core.evaluation.tracker import track
from magi_core.presets import PRESETS
from magi_core.training.train import RECIPES

pytest.importorskip("cv2", reason="OpenCV is not installed; pip install 'comfyui-magi[evaluation]'")


@pytest.mark.parametrize(("name", "world"), [("nano", "narrow"), ("nano-full", "full")])
def test_magi_nano_does_as_told(name: str, world: str) -> None:
    magi = magi_core.load(name, device="cpu")
    wanted = replace(PRESETS["nano"], load=".", vae_pretrained="vae", t5_pretrained="t5")
    assert replace(magi.config, sampling=wanted.sampling) == wanted
    assert magi.config.sampling == RECIPES[world].sampling
    settings = ScoreSettings(world=world, count=12, samples=0)
    scores = score(generator_of(magi, magi.config.sampling), settings)
    for row in scores.shares:
        assert min(row.colour.value, row.shape.value, row.direction.value) >= 0.6, row
    assert scores.whole.value >= 0.75


def test_not_moving_is_understood_as_standing_still() -> None:
    """A phrase that training holds back, beside many that say "moving" and mean it."""
    magi = magi_core.load("nano-full", device="cpu")
    told = (
        "a red circle",
        "a small blue triangle",
        "a big yellow star",
        "a magenta square",
        "a cyan star",
        "one green circle",
    )
    travel = []
    for seed, subject in enumerate(told):
        (chunk,) = magi.generate(f"1s: {subject} is not moving", seed=seed)
        path = track(chunk.frames, "black").centroid
        travel.append(float(np.hypot(*(path[-1] - path[0]))))
    assert sum(distance < STILL_TRAVEL for distance in travel) >= 5, travel
