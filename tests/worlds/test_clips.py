"""The simulator is the truth of every score, so its physics and its pictures are checked against what must hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_core.worlds.clips import (
    BOUNCE_SPEEDUP,
    CHUNK_FRAMES,
    DIRECTIONS,
    FULL,
    GRAVITY,
    NARROW,
    RESTITUTION,
    Clip,
    Phase,
    render,
    room,
    sample_clip,
    simulate,
)
from magi_core.worlds.shapes import NEW_SHAPE, Floats, bounds, draw

SEEDS = st.integers(0, 2**32 - 1)
WORLDS = st.sampled_from([NARROW, FULL])


def lone(motion: str, start: tuple[float, float] = (32.0, 20.0), heading: float = 0.0, shape: str = "circle") -> Clip:
    return Clip(shape, 9.0, 0.7, "black", start, (Phase("red", motion, heading),))


@settings(max_examples=60, deadline=None)
@given(SEEDS, WORLDS, st.integers(1, 5))
def test_the_object_is_always_whole_inside_the_frame(seed: int, world, chunks: int) -> None:
    clip = sample_clip(world, chunks, np.random.default_rng(seed))
    centroids = simulate(clip, clip.frames + 50)
    low, high = bounds(clip.shape, clip.radius)
    assert (centroids >= low - 1e-9).all() and (centroids <= high + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(SEEDS, WORLDS, st.integers(1, 4))
def test_more_frames_begin_with_the_same_frames(seed: int, world, chunks: int) -> None:
    clip = sample_clip(world, chunks, np.random.default_rng(seed))
    longer = replace(clip, phases=(*clip.phases, clip.phases[-1]))
    assert np.array_equal(simulate(clip, clip.frames + CHUNK_FRAMES), simulate(longer))
    assert np.array_equal(simulate(longer)[: clip.frames], simulate(clip))
    assert np.array_equal(simulate(clip, 10), simulate(clip)[:10])


@settings(max_examples=40, deadline=None)
@given(SEEDS, WORLDS)
def test_the_picture_shows_the_object_where_the_simulator_has_it(seed: int, world) -> None:
    taught = replace(world, shapes=(*world.shapes, NEW_SHAPE))
    clip = sample_clip(taught, 2, np.random.default_rng(seed))
    centroids = simulate(clip)
    white = draw(clip.shape, clip.radius, centroids, np.full((len(centroids), 3), 255), (0, 0, 0))[..., 0].astype(float)
    axis, area = np.arange(64) + 0.5, white.sum(axis=(1, 2))
    shown = np.stack([white.sum(axis=1) @ axis / area, white.sum(axis=2) @ axis / area], axis=1)
    assert np.abs(shown - centroids).max() < 0.1


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 6.28), st.floats(10, 54), st.floats(10, 54))
def test_bounce_keeps_its_speed(heading: float, x: float, y: float) -> None:
    centroids = simulate(lone("bounce", (x, y), heading), 200)
    low, high = bounds("circle", 9.0)
    speed = 0.7 * BOUNCE_SPEEDUP
    steps = np.linalg.norm(np.diff(centroids, axis=0), axis=1)
    clear = ((centroids > low + speed) & (centroids < high - speed)).all(axis=1)
    free = clear[:-1] & clear[1:]
    assert np.allclose(steps[free], speed) and steps.max() <= speed + 1e-9


def test_fall_loses_energy_at_the_floor_alone() -> None:
    centroids = simulate(lone("fall", (32.0, 15.0)), 600)
    floor = bounds("circle", 9.0)[1][1]
    height = floor - centroids[:, 1]
    airborne = np.diff(height, n=2)[:20]
    assert np.allclose(airborne, -GRAVITY)
    peaks = [height[i] for i in range(1, 300) if height[i] > height[i - 1] and height[i] >= height[i + 1]]
    for bounce, peak in enumerate(peaks[:4], start=1):
        assert peak == pytest.approx(height[0] * RESTITUTION ** (2 * bounce), abs=GRAVITY)
    assert height[-1] == 0 and np.ptp(centroids[:, 0]) == 0


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_slides_run_straight_and_stop_at_the_wall(motion: str) -> None:
    clip = lone(motion, (30.0, 30.0))
    centroids = simulate(clip, 200)
    assert np.allclose(centroids[1] - centroids[0], 0.7 * np.array(DIRECTIONS[motion]))
    assert np.array_equal(centroids[-1], centroids[-2]) and room(clip, centroids[-1], motion) == pytest.approx(0)


def test_a_change_shows_in_the_first_frame_of_its_chunk() -> None:
    clip = replace(
        lone("right", (32.0, 40.0)), phases=(Phase("red", "right"), Phase("blue", "up"), Phase("blue", "still"))
    )
    steps, frames = np.diff(simulate(clip), axis=0), render(clip)
    assert np.allclose(steps[22], [0.7, 0]) and np.allclose(steps[23], [0, -0.7]) and np.allclose(steps[46], [0, -0.7])
    assert not steps[47:].any()
    assert frames[23].max(axis=(0, 1)).argmax() == 0 and frames[24].max(axis=(0, 1)).argmax() == 2


def test_a_bounce_goes_on_across_chunks_whatever_later_headings_say() -> None:
    once = replace(lone("bounce", heading=1.0), phases=(Phase("red", "bounce", 1.0), Phase("blue", "bounce", 2.0)))
    assert np.array_equal(simulate(once), simulate(lone("bounce", heading=1.0), 48))


def test_an_image_clip_stands_still_for_one_latent_frame() -> None:
    steps = np.diff(simulate(replace(lone("left"), hold=4)), axis=0)
    assert not steps[:3].any() and np.allclose(steps[3:], [-0.7, 0])


def test_the_narrow_world_has_the_stated_mixture() -> None:
    rng = np.random.default_rng(5)
    clips = [sample_clip(NARROW, 2, rng) for _ in range(2000)]
    straight = [clip for clip in clips if clip.phases[0].motion in DIRECTIONS]
    roomy = [room(clip, np.array(clip.start), clip.phases[0].motion) >= 15 for clip in straight]
    assert len(straight) / len(clips) == pytest.approx(0.68, abs=0.04) and np.mean(roomy) > 0.7
    assert np.mean([clip.hold == 4 for clip in clips]) == pytest.approx(0.25, abs=0.04)
    changes = [(a.colour != b.colour, a.motion != b.motion) for a, b in (clip.phases for clip in clips)]
    assert np.mean([colour for colour, _ in changes]) == pytest.approx(0.45, abs=0.04)
    assert np.mean([motion for _, motion in changes]) == pytest.approx(0.55, abs=0.04)
    assert np.mean([not any(change) for change in changes]) == pytest.approx(0.10, abs=0.03)


def test_equal_seeds_give_equal_clips() -> None:
    def drawn(seed: int) -> tuple[Clip, Floats]:
        clip = sample_clip(FULL, 3, np.random.default_rng(seed))
        return clip, render(clip)

    (clip, frames), (again, same) = drawn(7), drawn(7)
    assert clip == again and np.array_equal(frames, same) and drawn(8)[0] != clip
    assert frames.shape == (72, 64, 64, 3) and frames.dtype == np.uint8
