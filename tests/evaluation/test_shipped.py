"""The model that is part of the repository is what its name says, and does as it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

import magi_core
from magi_core.evaluation.generator import generator_of
from magi_core.evaluation.score import ScoreSettings, score
from magi_core.presets import PRESETS

pytest.importorskip("cv2", reason="OpenCV is not installed; pip install 'comfyui-magi[evaluation]'")


def test_magi_nano_does_as_told() -> None:
    magi = magi_core.load("nano", device="cpu")
    assert magi.config == replace(PRESETS["nano"], load=".", vae_pretrained="vae", t5_pretrained="t5")
    settings = ScoreSettings(count=6, samples=0)
    scores = score(generator_of(magi, magi.config.sampling), settings)
    for row in scores.shares:
        assert min(row.colour.value, row.shape.value, row.direction.value) >= 0.6, row
    assert scores.whole.value >= 0.75
