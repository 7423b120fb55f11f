"""Captions must say what changes, keep test wordings out of training, and leave out only what is allowed."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_core.training.practice import PRACTICE
from magi_core.worlds.captions import USUAL, WORDINGS, Omissions, caption_clip, describe
from magi_core.worlds.clips import FULL, NARROW, Clip, Phase, sample_clip
from magi_core.worlds.shapes import COLOURS, SHAPES

SEEDS = st.integers(0, 2**32 - 1)
OMISSIONS = [USUAL, PRACTICE["full"].omissions]
STORY = Clip(
    "circle", 9.0, 0.7, "black", (32.0, 32.0), (Phase("red", "right"), Phase("blue", "still"), Phase("blue", "up"))
)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from([NARROW, FULL]), st.sampled_from(OMISSIONS), st.sampled_from(["train", "test"]))
def test_a_caption_says_what_is_new_and_nothing_wrong(seed: int, world, omissions: Omissions, split: str) -> None:
    rng = np.random.default_rng(seed)
    clip = sample_clip(world, 3, rng)
    for chunk, phase in enumerate(clip.phases):
        said = describe(clip, chunk, rng, omissions=omissions, split=split)
        assert said.text == said.text.lower() and said.text.isascii() and len(said.text) <= 80
        words = said.text.split()
        assert [word for word in words if word in COLOURS] == ([said.colour] if said.colour else [])
        assert [word for word in words if word in SHAPES] == ([said.shape] if said.shape else [])
        assert said.colour in (None, phase.colour) and said.shape in (None, clip.shape)
        assert said.motion in (None, phase.motion)
        before = clip.phases[chunk - 1] if chunk else None
        if before is None and not clip.hold:
            assert said.colour and said.shape and said.motion
        if before is not None:
            assert said.colour or before.colour == phase.colour
            assert said.motion or before.motion == phase.motion


def test_what_is_to_be_left_out_is_left_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        said = describe(STORY, 0, rng, omit={"colour", "shape"})
        assert said.colour is None and said.shape is None and "right" in said.text


def test_an_unchanged_slide_goes_on_without_its_direction_and_a_new_one_is_told() -> None:
    story = replace(STORY, phases=(Phase("red", "right"), Phase("blue", "right"), Phase("blue", "up")))
    rng = np.random.default_rng(0)
    for _ in range(50):
        same = describe(story, 1, rng, omit={"direction"})
        assert same.motion is None and "right" not in same.text and "blue" in same.text
        assert describe(story, 2, rng, omit={"colour"}).motion == "up"


def test_the_wordings_of_the_two_splits_are_disjoint() -> None:
    for field in fields(WORDINGS["train"]):
        assert not set(getattr(WORDINGS["train"], field.name)) & set(getattr(WORDINGS["test"], field.name))
    rng = np.random.default_rng(0)
    clips = [sample_clip(FULL, 2, rng) for _ in range(1500)]
    train = {text for clip in clips for text in caption_clip(clip, rng)}
    test = {text for clip in clips for text in caption_clip(clip, rng, split="test")}
    assert len(train) > 1000 and len(test) > 1000 and not train & test


@pytest.mark.parametrize(
    ("chunk", "examples"), [(1, ("it turns blue and stops",)), (2, ("it moves up", "it goes upwards"))]
)
def test_wording_varies_and_reads_like_a_person(chunk: int, examples: tuple[str, ...]) -> None:
    rng = np.random.default_rng(1)
    texts = {describe(STORY, chunk, rng).text for _ in range(2000)}
    assert len(texts) > 30 and texts >= set(examples)
