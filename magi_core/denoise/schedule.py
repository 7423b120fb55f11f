"""When every chunk is how clean, and what it sees: the window schedule as plain data (spec 8).

Notable:
- One absolute clock. With k = num_steps / window_size steps a stage, chunk c is at denoise step ``clock - c * k``: it enters the window
  when the clock shows c * k and leaves it clean num_steps later. Chunks count from the first of the video, prefix included.
- A run is the chunks [offset, end) denoised in one sweep of the window; offset counts the clean chunks before it.
- An anchor, where there is one, is the first chunk of a scene once more, remembered under the number of the chunk before the oldest that
  is still read. That one is not read any more, so its place is free. Who reads the oldest one, and is of that scene, reads the anchor too.
- Everything here is numbers; no tensor of the model is touched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from magi_core.config import Sampling
from magi_core.errors import MagiError

CURVES = ("sd3", "square", "piecewise", "identity")
EVERYTHING = sys.maxsize
"""A KV length that reaches back to the first chunk."""
ONE_SCENE = (0,)
"""First chunks of the scenes of a video without keyframes."""
PREFIX_KV_CHUNKS = 8
"""What a prefix chunk sees where no setting says it (spec 8.4.1)."""


class Stage(NamedTuple):
    """The k steps in which the same chunks are in flight: [chunk_start, chunk_end), in window slots [t_start, t_end) (spec 8.3)."""

    chunk_start: int
    chunk_end: int
    t_start: int
    t_end: int


class Anchor(NamedTuple):
    """A clean chunk that stays in sight, and the number under which it is remembered and read."""

    chunk: int
    place: int


@dataclass(frozen=True)
class Step:
    """One denoise step. Tuples run over the chunks from left, the cleanest first."""

    chunks: range
    """The chunks in flight."""
    steps: tuple[int, ...]
    """How many of its denoise steps each has behind it."""
    extra: bool
    """The chunk before ``chunks`` became clean in the stage before: it goes along once more, so that its keys and values are stored."""
    near_clean: bool
    """The leftmost chunk has little noise left; the distilled model then also looks at it alone (spec 7.2)."""
    interval: int
    """Of the distilled step size (spec 3.5)."""
    kv_chunks: tuple[tuple[int, int], ...]
    """The chunks [start, end) that each sees; with ``extra`` the first entry is the extra chunk's."""
    anchor: Anchor | None = None
    """What is to be remembered before this step; None where there is no anchor, or it is there since an earlier step."""


@dataclass(frozen=True)
class Schedule:
    """The numbers that a ``Sampling`` implies; ``step`` says what happens when the clock shows a given count."""

    sampling: Sampling
    times: tuple[float, ...]
    """num_steps + 1 float32 values from 0 (noise) to 1 (clean)."""
    intervals: tuple[int, ...]
    """By step within a stage."""
    kv_lengths: tuple[int, ...]
    """By denoise step: how many chunks are seen, the chunk itself counted."""

    @classmethod
    def of(cls, sampling: Sampling) -> Schedule:
        times = sampling.times or timesteps(sampling.num_steps, sampling.shortcut_mode)
        return cls(sampling, times, step_intervals(sampling.num_steps, sampling.shortcut_mode), kv_lengths(sampling))

    @cached_property
    def step_sizes(self) -> tuple[float, ...]:
        """Differences of ``times`` as float32 arithmetic has them."""
        return tuple(torch.tensor(self.times, dtype=torch.float32, device="cpu").diff().tolist())

    @property
    def stage_steps(self) -> int:
        """k, the steps of a stage."""
        return self.sampling.num_steps // self.sampling.window_size

    @property
    def clean_kv_length(self) -> int:
        """How many chunks a chunk sees that has just become clean (spec 8.4.3)."""
        return prefix_kv_length(self.sampling) if self.sampling.noise2clean_kvrange else EVERYTHING

    def step(self, offset: int, end: int, clock: int, scenes: Sequence[int] = ONE_SCENE) -> Step:
        """What is done when the clock shows ``clock``, offset * k <= clock < (end + window_size - 1) * k (spec 8.4).

        scenes: their first chunks in order, as far as an anchor can still be of one.
        """
        number, j = divmod(clock, self.stage_steps)
        stage = window_stage(number, end, self.sampling.window_size, offset)
        chunks = range(stage.chunk_start, stage.chunk_end)
        steps = tuple(clock - chunk * self.stage_steps for chunk in chunks)
        extra = j == 0 and chunks.start > offset
        seen = [kv_chunks(c, self.kv_lengths[s]) for c, s in zip(chunks, steps, strict=True)]
        anchor = self.anchor(offset, clock, scenes)
        if anchor is not None:
            later = min((scene for scene in scenes if scene > anchor.chunk), default=end)
            seen = [
                (start - (c < later and start == anchor.place + 1), last)
                for c, (start, last) in zip(chunks, seen, strict=True)
            ]
            there = clock > offset * self.stage_steps and self.first_held(offset, clock - 1) == anchor.place
            anchor = None if there else anchor
        if extra:
            seen.insert(0, kv_chunks(chunks.start - 1, self.clean_kv_length))
        # The threshold 0.3 falls on a schedule point: the float32 time 0.3 is larger than the double 0.3 and counts (spec 8.4.5).
        near_clean = self.times[steps[0]] > self.sampling.distill_nearly_clean_chunk_threshold
        return Step(chunks, steps, extra, near_clean, self.intervals[j], tuple(seen), anchor)

    def run(self, offset: int, end: int) -> Iterator[Step]:
        """All steps of a run, in order."""
        for clock in range(offset * self.stage_steps, (end + self.sampling.window_size - 1) * self.stage_steps):
            yield self.step(offset, end, clock)

    def first_read(self, offset: int, clock: int) -> int:
        """The oldest chunk that any step from ``clock`` on reads as itself, in a run of any length."""
        number, j = divmod(clock, self.stage_steps)
        oldest = max(offset, number - self.sampling.window_size + 1)
        reads = [oldest - self.clean_kv_length] if j == 0 and oldest > offset else []
        for chunk in range(oldest, number + 2):  # the last one is next to come; later ones read nothing older
            lengths = self.kv_lengths[max(0, clock - chunk * self.stage_steps) :]
            reads.append(chunk + 1 - max(*lengths, self.clean_kv_length))
        return max(0, min(reads))

    def anchor(self, offset: int, clock: int, scenes: Sequence[int]) -> Anchor | None:
        """The anchor for who reads it when the clock shows ``clock``; None where there is none. scenes: as for ``step``."""
        first = self.first_read(offset, clock) if self.sampling.anchor else 0
        begun = [scene for scene in scenes if scene < first]
        return Anchor(begun[-1], first - 1) if begun else None

    def first_held(self, offset: int, clock: int) -> int:
        """The oldest number under which keys and values are kept for steps from ``clock`` on: an anchor's, or ``first_read``."""
        return max(0, self.first_read(offset, clock) - self.sampling.anchor)

    def depends_on(self, offset: int, layers: int, scenes: Sequence[int]) -> tuple[int, ...]:
        """The clean chunks that a run starting behind ``offset`` of them depends on, oldest first. scenes: as for ``step``."""
        first = self.first_prefix_chunk(offset, layers)
        anchor = self.anchor(offset, offset * self.stage_steps, scenes)
        return (() if anchor is None or anchor.chunk >= first else (anchor.chunk,)) + tuple(range(first, offset))

    def first_prefix_chunk(self, offset: int, layers: int) -> int:
        """The oldest of the ``offset`` clean chunks that a run starting behind them depends on, an anchor aside.

        The run reads chunks from ``first_read`` on. Where clean chunks see each other, what is stored of a chunk in layer l depends
        on the chunks that l such looks back reach; older ones cannot change any number that is read.
        """
        reach = (prefix_kv_length(self.sampling) - 1) * (layers - 1)
        return max(0, self.first_read(offset, offset * self.stage_steps) - reach)


def timesteps(num_steps: int, shortcut_mode: str, curve: str = "sd3", shift: float = 3.0) -> tuple[float, ...]:
    """num_steps + 1 times from 0 (noise) to 1 (clean), each exactly a float32 (spec 8.1).

    With 12 steps the quarters are not even: 1/16, 1/16, 1/8 for shortcut_mode "16,16,8", else 1/8, 1/16, 1/16. curve: "sd3" (of the
    square, with ``shift``), "square", "piecewise" or "identity". Raises MagiError for another curve.
    """
    if curve not in CURVES:
        raise MagiError(f"the timestep curve is {curve!r}; allowed: {', '.join(CURVES)}")
    if num_steps == 12:
        base = (0, 1 / 16, 1 / 8) if shortcut_mode == "16,16,8" else (0, 1 / 8, 3 / 16)
        even = [quarter / 4 + part for quarter in range(4) for part in base]
        t = torch.tensor([*even, 1], dtype=torch.float32, device="cpu")
    else:
        t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float32, device="cpu")
    if curve in ("sd3", "square"):
        t = t**2
    if (
        curve == "sd3"
    ):  # in this order of operations: 0.3 comes out above the double 0.3, and the last time a little above 1
        t = 1 / shift * t / (1 + (1 / shift - 1) * t)
    if curve == "piecewise":
        t = torch.where(t < 0.875, t * (0.5 / 0.875), 0.5 + (t - 0.875) * (0.5 / 0.125))
    return tuple(t.tolist())


def step_intervals(num_steps: int, shortcut_mode: str) -> tuple[int, ...]:
    """Relative step sizes the distilled model is told; 1 but for multiples of three steps (spec 8.1)."""
    if num_steps % 3:
        return (1,) * num_steps
    return ((1, 1, 2) if shortcut_mode == "16,16,8" else (2, 1, 1)) * (num_steps // 3)


def step_embedding(num_steps: int, interval: int) -> float:
    """The step size as the distilled model's timestep embedder takes it, unscaled (spec 3.5, 14.5)."""
    return 4 / interval * 2 if num_steps == 12 else num_steps / 4 * 2


def window_stage(number: int, chunk_num: int, window_size: int, offset: int) -> Stage:
    """Stage ``number``, offset <= number <= chunk_num + window_size - 2 (spec 8.3)."""
    return Stage(
        chunk_start=max(offset, number - window_size + 1),
        chunk_end=min(chunk_num, number + 1),
        t_start=max(0, number - chunk_num + 1),
        t_end=min(window_size, number - offset + 1),
    )


def kv_lengths(sampling: Sampling) -> tuple[int, ...]:
    """By denoise step, how many chunks a chunk sees, itself counted; ``noise2clean_kvrange`` spread evenly, noisiest first (spec 8.4.3)."""
    lengths = sampling.noise2clean_kvrange or (EVERYTHING,)
    return tuple(lengths[step * len(lengths) // sampling.num_steps] for step in range(sampling.num_steps))


def prefix_kv_length(sampling: Sampling) -> int:
    """How many chunks a clean chunk of the prefix sees (spec 8.4.1)."""
    if sampling.clean_chunk_kvrange != -1:
        return sampling.clean_chunk_kvrange
    return (sampling.noise2clean_kvrange or (PREFIX_KV_CHUNKS,))[-1]


def kv_chunks(chunk: int, length: int) -> tuple[int, int]:
    """The chunks [start, end) that ``chunk`` sees when it sees ``length``."""
    return max(0, chunk + 1 - length), chunk + 1


def chunk_count(new_frames: int, prefix_frames: int, chunk_width: int) -> int:
    """Chunks of a video of ``new_frames`` latent frames after ``prefix_frames``, the prefix's chunks counted (spec 8.2)."""
    return -(-(new_frames + prefix_frames) // chunk_width)


def first_new_frame(chunk: int, prefix_frames: int, chunk_width: int) -> int:
    """The first latent frame of a chunk, counted from its start, that the prefix does not hold already.

    An image (prefix_frames 1) counts as new: its frame is part of the video (spec 8.4.7).
    """
    return max(0, prefix_frames - chunk * chunk_width) if prefix_frames != 1 else 0
