"""The plan: every frame once, the stated rounding, the countdown."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_core.errors import MagiError
from magi_core.plan import plan
from magi_core.storyboard import Shot, Storyboard

lengths = st.lists(
    st.floats(0, 20, exclude_min=True) | st.sampled_from([0.1, 0.5, 1, 1.5, 2, 2.5]), min_size=1, max_size=8
)
rates = st.integers(1, 60) | st.sampled_from([Fraction(24000, 1001), 29.97])


def board(*seconds: float) -> Storyboard:
    return Storyboard([Shot(f"shot {number}", length, f"{number}.png") for number, length in enumerate(seconds, 1)])


def chunks_of_shots(storyboard: Storyboard, **layout: int) -> list[int]:
    chunks = plan(storyboard, **layout).chunks
    return [sum(chunk.shot == shot for chunk in chunks) for shot in range(len(storyboard.shots))]


@settings(deadline=None)
@given(lengths, rates, st.integers(1, 48), st.integers(0, 200), st.integers(0, 9))
def test_every_frame_is_kept_exactly_once(seconds, fps, chunk_frames, prefix_frames, more_to_come) -> None:
    made = plan(board(*seconds), fps, chunk_frames=chunk_frames, prefix_frames=prefix_frames, more_to_come=more_to_come)
    at = prefix_frames
    kept = []
    for index, chunk in enumerate(made.chunks):
        assert chunk.index == index
        place = prefix_frames // chunk_frames + index
        first = place * chunk_frames + chunk.skip_frames
        assert first == at, "a chunk starts where the one before ended"
        assert 1 <= chunk.frames <= chunk_frames - chunk.skip_frames
        assert chunk.start_second == pytest.approx(float((first - prefix_frames) / made.fps))
        kept += range(first, first + chunk.frames)
        at = first + chunk.frames
        assert chunk.chunks_remaining == len(made.chunks) - index + more_to_come
    assert kept == list(range(prefix_frames, prefix_frames + made.frames))
    # Every shot has its place, in order, and its keyframe once, at its start.
    order = [chunk.shot for chunk in made.chunks]
    assert sorted(set(order)) == list(range(len(seconds))) and order == sorted(order)
    assert [chunk.keyframe for chunk in made.chunks if chunk.keyframe] == [
        f"{n}.png" for n in range(1, len(seconds) + 1)
    ]
    assert all(
        chunk.keyframe is None or before.shot != chunk.shot
        for before, chunk in zip(made.chunks, made.chunks[1:], strict=False)
    )
    # The length is exact to the frame unless there were more shots than chunks.
    asked = sum(Fraction(repr(float(length))) for length in seconds) * made.fps
    if len(made.chunks) > len(seconds):
        assert made.frames == max(1, int(asked + Fraction(1, 2)))


@pytest.mark.parametrize(
    ("seconds", "chunks", "frames"),
    [
        ((2, 1, 1), [2, 1, 1], 96),
        ((1.5, 1.5), [2, 1], 72),  # 1.5 rounds up
        ((1.4, 1.4, 1.4), [1, 2, 2], 101),  # ends at 1.4, 2.8, 4.2: nearest 1, 3; 4.2 s is 100.8 frames
        ((0.1,) * 10, [1] * 10, 9 * 24 + 2),  # more shots than chunks: one each, the last as long as asked
        ((0.1, 3), [1, 3], 74),
        ((1.6, 0.3), [1, 1], 46),  # the first shot gives way, so that the second has a chunk and the length is exact
        ((0.01,), [1], 1),
        ((1 / 48,), [1], 1),  # half a frame rounds up
        ((1.0 + 1 / 24,), [2], 25),
    ],
)
def test_the_stated_rounding(seconds: tuple[float, ...], chunks: list[int], frames: int) -> None:
    storyboard = board(*seconds)
    assert chunks_of_shots(storyboard) == chunks
    assert plan(storyboard).frames == frames


def test_decimal_seconds_add_up_as_typed() -> None:
    assert plan(board(*[0.7] * 10), chunk_frames=1, fps=10).frames == 70
    assert chunks_of_shots(board(0.3, 0.3, 0.4, 1), fps=10, chunk_frames=5) == [1, 0 + 1, 1, 1]


def test_continuing_a_clip_fills_its_last_chunk_first() -> None:
    made = plan(board(1, 1), prefix_frames=32)
    assert [(chunk.skip_frames, chunk.frames) for chunk in made.chunks] == [(8, 16), (0, 24), (0, 8)]
    assert [chunk.start_second for chunk in made.chunks] == pytest.approx([0, 16 / 24, 40 / 24])
    assert [chunk.shot for chunk in made.chunks] == [0, 1, 1]
    assert plan(board(1, 1), prefix_frames=48) == plan(board(1, 1))


def test_duration_token_counts_down_and_stops_at_8() -> None:
    made = plan(board(10))
    assert [chunk.duration_token for chunk in made.chunks] == [8, 8, 8, 7, 6, 5, 4, 3, 2, 1]
    assert plan(board(1), more_to_come=3).chunks[0].duration_token == 4


def test_the_table_shows_every_chunk_and_equals_the_documentation() -> None:
    text = (Path(__file__).parent.parent / "docs" / "storyboard.md").read_text(encoding="utf-8")
    example = re.findall(r"```text\n(.*?)```", text, re.DOTALL)[0]
    assert plan(Storyboard.from_string(example)).table() in text
    long = plan(Storyboard([Shot("line\nbreak " * 40, 12)])).table().split("\n")
    assert len(long) == 1 + 12 + 1 and all(len(line) < 160 for line in long)
    assert long[1].split()[5] == "8+"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fps": value}, "fps is")
        for value in (0, -24, 0.5, 241, float("nan"), float("inf"), True, "24", None, 10**400, Fraction(1, 3))
    ]
    + [({"chunk_frames": value}, "chunk_frames is") for value in (0, -1, 24.0, True, "24", 10**9)]
    + [({"more_to_come": value}, "more_to_come is") for value in (-1, 1.0, False, "1", 10**9)]
    + [({"prefix_frames": value}, "prefix_frames is") for value in (-1, 1.5, None)],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(settings: dict, says: str) -> None:
    with pytest.raises(MagiError, match=says):
        plan(board(1), **settings)
