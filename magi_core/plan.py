"""From seconds to chunks: which prompt, duration token and keyframe every chunk gets, and how many of its frames are kept.

Nothing here loads a model; ``Plan.table()`` is the dry run.

Notable, and the whole rule:
- The video's length is exact to the frame: all seconds together times fps, halves up; the last chunk is trimmed to it.
- A prompt can change only between chunks. The end of each shot but the last is rounded to the nearest chunk boundary, halves up,
  counted from the start of the storyboard so that rounding does not add up.
- Every shot keeps at least one chunk; neighbours give way. If there are more shots than chunks, each shot gets one chunk and
  the video becomes longer than asked.
- A shot's keyframe belongs to the first chunk of the shot.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational, Real

from magi_core.errors import MagiError, shorten, whole_number
from magi_core.storyboard import Shot, Storyboard

MAX_DURATION_TOKEN = 8
"""The model knows "8 chunks remain" at most (spec 9); longer countdowns say 8."""

MAX_FPS = 240
MAX_MORE_TO_COME = 1_000_000


@dataclass(frozen=True)
class ChunkPlan:
    """What one chunk is asked to show."""

    index: int
    """Place in the plan, from 0."""
    shot: int
    """Index into ``Storyboard.shots``, from 0."""
    prompt: str
    """The storyboard's prefix and the shot's words."""
    start_second: float
    """When its first kept frame is shown, counted from the start of the storyboard."""
    skip_frames: int
    """Frames at the chunk's start that belong to the video that is being continued; 0 but for the first chunk."""
    frames: int
    """Frames kept after the skipped ones; fewer than a chunk's only at the ends."""
    chunks_remaining: int
    """Countdown that includes this chunk and what was announced to come after the plan."""
    keyframe: str | None
    """Image that the chunk starts from, relative to the storyboard's folder."""

    @property
    def duration_token(self) -> int:
        """1..8, the number the model's DURATION token says (spec 9)."""
        return min(self.chunks_remaining, MAX_DURATION_TOKEN)


@dataclass(frozen=True)
class Plan:
    """All chunks in order; together they keep every frame of the video exactly once."""

    chunks: tuple[ChunkPlan, ...]
    fps: Fraction
    frames: int
    """Frames kept, over all chunks."""

    @property
    def seconds(self) -> float:
        """Length of the video in seconds."""
        return float(self.frames / self.fps)

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt per chunk."""
        return tuple(chunk.prompt for chunk in self.chunks)

    def table(self) -> str:
        """The dry run: one line a chunk, and a line of totals."""
        rows = [("chunk", "time", "frames", "shot", "remaining", "keyframe", "prompt")]
        for chunk in self.chunks:
            end = chunk.start_second + float(chunk.frames / self.fps)
            remaining = str(chunk.chunks_remaining) if chunk.chunks_remaining <= MAX_DURATION_TOKEN else "8+"
            time = f"{chunk.start_second:.2f}-{end:.2f} s"
            words = (str(chunk.index), time, str(chunk.frames), str(chunk.shot + 1), remaining, chunk.keyframe or "-")
            rows.append((*words, _one_line(chunk.prompt)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        total = f"{len(self.chunks)} chunks, {self.frames} frames, {self.seconds:.2f} s at {float(self.fps):g} frames per second"
        return "\n".join([*lines, total])


def plan(
    storyboard: Storyboard,
    fps: float | Fraction = 24,
    *,
    chunk_frames: int = 24,
    prefix_frames: int = 0,
    more_to_come: int = 0,
) -> Plan:
    """Lay the storyboard out over chunks, by the rule in this module's head.

    ``chunk_frames`` is the model's chunk in video frames (4 times chunk_width). ``prefix_frames`` is the length of a video that
    is being continued, a whole number of frames: its last, incomplete chunk is filled up first. (A first image is not a
    prefix here: its frame is part of the video.) ``more_to_come`` is added to the duration countdown: the number of chunks that
    a later extension will add.
    Raises MagiError when a number is outside of its range.
    """
    rate = checked_fps(fps)
    chunk_frames = whole_number("chunk_frames", chunk_frames, 1, 10_000)
    more_to_come = whole_number("more_to_come", more_to_come, 0, MAX_MORE_TO_COME)
    skip = whole_number("prefix_frames", prefix_frames, 0, 2**40) % chunk_frames

    shots = storyboard.shots
    ends = _frames_at_ends(shots, rate)
    frames = max(1, _half_up(ends[-1]))
    chunks = -(-(skip + frames) // chunk_frames)
    if chunks < len(shots):
        chunks = len(shots)
        last = min(max(1, _half_up(ends[-1] - ends[-2])), chunk_frames)
        frames = (chunks - 1) * chunk_frames + last - skip

    first_chunks = [0]
    for number, shot_end in enumerate(ends[:-1], 1):
        nearest = _half_up((skip + shot_end) / chunk_frames)
        first_chunks.append(min(max(nearest, first_chunks[-1] + 1), chunks - (len(shots) - number)))

    planned = []
    for index in range(chunks):
        shot = bisect_right(first_chunks, index) - 1
        start = max(0, index * chunk_frames - skip)
        end = min(frames, (index + 1) * chunk_frames - skip)
        planned.append(
            ChunkPlan(
                index=index,
                shot=shot,
                prompt=storyboard.prompt_of(shots[shot]),
                start_second=float(start / rate),
                skip_frames=skip if index == 0 else 0,
                frames=end - start,
                chunks_remaining=chunks - index + more_to_come,
                keyframe=shots[shot].keyframe if first_chunks[shot] == index else None,
            )
        )
    return Plan(tuple(planned), rate, frames)


def checked_fps(fps: object) -> Fraction:
    """``fps`` as an exact fraction, a float as the decimal number that was typed; MagiError unless it is a number from 1 to 240."""
    if isinstance(fps, Real) and not isinstance(fps, bool):
        exact = isinstance(fps, Rational)
        if exact or math.isfinite(fps):
            rate = Fraction(fps) if isinstance(fps, Rational) else Fraction(repr(float(fps)))
            if 1 <= rate <= MAX_FPS:
                return rate
    raise MagiError(f"fps is {shorten(fps)}; it must be a number of frames per second from 1 to {MAX_FPS}")


def _frames_at_ends(shots: tuple[Shot, ...], rate: Fraction) -> list[Fraction]:
    """Where each shot ends, in frames. Seconds count as the decimal number that was typed, so ten times 0.1 is 1."""
    ends, total = [], Fraction(0)
    for shot in shots:
        total += Fraction(repr(shot.seconds))
        ends.append(total * rate)
    return ends


def _half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def _one_line(prompt: str) -> str:
    words = " ".join(prompt.split())
    return words if len(words) <= 80 else words[:77] + "..."
