"""How many bytes a run writes, as plain arithmetic over the model's sizes; headers (a few kB a file) and the video are not counted."""

from __future__ import annotations

from dataclasses import dataclass

from magi_core.config import MagiConfig
from magi_core.denoise.schedule import Schedule
from magi_core.denoise.state import Position
from magi_core.text.assembly import NULL_LENGTH

PATCH = 8
"""Pixels of a latent, in height and in width."""
FLOAT32 = 4
LONG = 64
"""A video of so many chunks goes through everything that a longer one does."""


@dataclass(frozen=True)
class KeptBytes:
    """Bytes on disk."""

    chunk: int
    """Of each finished chunk's file."""
    checkpoint: int
    """Of the largest checkpoint at a chunk boundary; three are kept at most."""
    longest_checkpoint: int
    """Of one between two chunks, which is written when the work is broken off."""


def kept_bytes(config: MagiConfig, height: int, width: int, *, captions: int = 1, tokens: int = 100) -> KeptBytes:
    """What a run writes at ``height`` x ``width`` pixels, with so many distinct captions of ``tokens`` tokens still to come."""
    dit, sampling = config.dit, config.sampling
    schedule = Schedule.of(sampling)
    k = schedule.stage_steps
    area = (height // PATCH) * (width // PATCH)
    chunk = dit.latent_channels * sampling.chunk_width * area * FLOAT32
    rows = sampling.chunk_width * area // dit.patch_size**2 * dit.num_query_groups * 2 * dit.kv_channels
    keys = rows * dit.params_dtype.itemsize * dit.num_layers
    words = (NULL_LENGTH + captions * tokens) * dit.caption_channels * FLOAT32

    def at(clock: int) -> int:
        position = Position(0, LONG, clock)
        oldest = position.oldest(schedule)
        in_flight = len(range(oldest, min(LONG, -(-clock // k))))
        clean = oldest - position.first_kept(schedule, dit.num_layers)
        owed = clock % k == 0 and oldest > 0  # of a chunk that has just become clean nothing is stored yet
        read = max(0, oldest - owed - schedule.first_read(0, clock))
        return (in_flight + clean) * chunk + read * keys + words

    clocks = range(1, (LONG + sampling.window_size - 1) * k)
    return KeptBytes(chunk, max(at(clock) for clock in clocks if clock % k == 0), max(at(clock) for clock in clocks))
