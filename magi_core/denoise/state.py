"""Where a session stands: everything that changes from step to step, as values.

A step makes a new state and puts it in the old one's place, so a step that is interrupted changes nothing. (Only the KV cache is
written in place: with what the repeated step will write again.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from magi_core.denoise.schedule import ONE_SCENE, Schedule
from magi_core.model import KVCache
from magi_core.text.caption import Caption


@dataclass(frozen=True)
class Position:
    """The place in the schedule. Chunks count from the first of the video."""

    offset: int
    """First chunk of the present run: all before were clean when it began."""
    planned: int
    """End of the plan."""
    clock: int
    """See ``schedule``; the run began at offset * k."""
    drain_at: int | None = None
    """Set when a window slot was left empty: the run ends before this chunk, and what is planned from there on is the next run's."""
    steps_done: int = 0
    """Over all runs."""

    @property
    def end(self) -> int:
        """End of the present run."""
        return self.planned if self.drain_at is None else self.drain_at

    def steps_left(self, schedule: Schedule) -> int:
        """Of the present run."""
        return _run_steps(schedule, self.end - self.offset) - (self.clock - self.offset * schedule.stage_steps)

    def steps_planned(self, schedule: Schedule) -> int:
        """Still to do, the next run included."""
        return self.steps_left(schedule) + _run_steps(schedule, self.planned - self.end)

    def starved(self, schedule: Schedule) -> bool:
        """Whether the next stage wants a chunk that is not planned, and no slot was left empty before."""
        number, j = divmod(self.clock, schedule.stage_steps)
        return self.drain_at is None and j == 0 and number >= self.planned

    def oldest(self, schedule: Schedule) -> int:
        """The leftmost chunk that is not clean."""
        return min(self.end, max(self.offset, self.clock // schedule.stage_steps - schedule.sampling.window_size + 1))

    def first_needed(self, schedule: Schedule, layers: int) -> int:
        """The oldest clean chunk whose latents are still wanted: by the next pass, or by a run that starts where this one ends."""
        newest = min(self.oldest(schedule) - 1, schedule.first_prefix_chunk(self.end, layers))
        return max(newest, schedule.first_prefix_chunk(self.offset, layers))

    def first_kept(self, schedule: Schedule, layers: int) -> int:
        """The oldest clean chunk whose latents are kept: so many that one can also go back to the oldest chunk that is not clean."""
        return min(self.first_needed(schedule, layers), schedule.first_prefix_chunk(self.oldest(schedule), layers))

    def scenes_left(self, schedule: Schedule, scenes: Sequence[int]) -> tuple[int, ...]:
        """Of the scenes' first chunks those that can still be an anchor."""
        anchor = schedule.anchor(self.offset, self.clock, scenes)
        return tuple(scene for scene in scenes if anchor is None or scene >= anchor.chunk)

    def next_run(self, schedule: Schedule) -> Position:
        """Behind the last chunk of the present run, whose chunks are the next one's prefix."""
        clock = self.end * schedule.stage_steps
        return replace(self, offset=self.end, clock=clock, drain_at=None)


def _run_steps(schedule: Schedule, chunks: int) -> int:
    return (chunks - 1) * schedule.stage_steps + schedule.sampling.num_steps if chunks else 0


@dataclass(frozen=True, eq=False)
class SessionState:
    """Mappings go by chunk. Latents are [1, C, chunk_width, H, W] float32."""

    position: Position
    captions: Mapping[int, Caption]
    """Of chunks that are planned and not clean yet."""
    held: Mapping[int, Tensor]
    """Leading frames [1, C, f, H, W] that are put back before every pass: the prefix's last, incomplete chunk, an image, a keyframe."""
    in_flight: Mapping[int, Tensor]
    clean: Mapping[int, Tensor]
    """The newest clean chunks, as the video shows them: as many as a run depends on that starts behind them, or after this one; and
    those of ``scenes`` where there is an anchor."""
    cache: KVCache | None
    """None until the clean chunks before the run have been read."""
    scenes: tuple[int, ...] = ONE_SCENE
    """First chunks of scenes, in order: the first of the video and every one with a keyframe, as far as an anchor can still be of it."""
