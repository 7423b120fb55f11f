"""A whole run of the schedule as a list of events, for comparison with recorded runs; no model takes part.

The events are those of the reference: what each forward pass is given, how times move, when a chunk is finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from magi_core.config import Sampling
from magi_core.denoise.schedule import (
    Schedule,
    Step,
    chunk_count,
    first_new_frame,
    kv_chunks,
    prefix_kv_length,
    window_stage,
)


def trace(
    sampling: Sampling, new_frames: int, prefix_frames: int, text_tokens: int, null_tokens: int
) -> list[dict[str, Any]]:
    """The events of denoising ``new_frames`` latent frames after a prefix of ``prefix_frames``.

    text_tokens and null_tokens: length of every chunk's caption and of the null caption. Chunks of ``yield`` events count from
    the first one denoised.
    """
    schedule = Schedule.of(sampling)
    width = sampling.chunk_width
    offset = prefix_frames // width
    end = chunk_count(new_frames, prefix_frames, width)
    clean = torch.tensor(sampling.clean_t, dtype=torch.float32).item()
    events: list[dict[str, Any]] = []
    if offset:
        reads = [kv_chunks(chunk, prefix_kv_length(sampling)) for chunk in range(offset)]
        seen = (0, offset, False, False, schedule.intervals[0], [clean] * offset, reads)
        events.append(_forward("extract_prefix", *seen, [null_tokens] * offset, null_tokens, width))
    for number, step in enumerate(schedule.run(offset, end)):
        events += _step(schedule, number, step, offset, end, clean, (text_tokens, null_tokens))
        if step.steps[0] == sampling.num_steps - 1:
            chunk = step.chunks.start
            frames = width - first_new_frame(chunk, prefix_frames, width)
            events.append({"event": "yield", "chunk_idx": chunk - offset, "num_latent_frames": frames})
    return events


def _step(
    schedule: Schedule, number: int, step: Step, offset: int, end: int, clean: float, tokens: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    before = [schedule.times[s] for s in step.steps]
    extra = int(step.extra)
    yield _forward(
        "forward",
        step.chunks.start - extra,
        step.chunks.stop,
        step.extra,
        step.near_clean,
        step.interval,
        [clean] * extra + before,
        step.kv_chunks,
        [tokens[1]] * extra + [tokens[0]] * len(before),
        tokens[1],
        schedule.sampling.chunk_width,
    )
    stage, j = divmod(number, schedule.stage_steps)
    window = window_stage(stage + offset, end, schedule.sampling.window_size, offset)
    yield {
        "event": "integrate",
        "step": number,
        "denoise_step_per_stage": schedule.stage_steps,
        "denoise_stage": stage,
        "denoise_idx": j,
        "chunk_offset": offset,
        **window._asdict(),
        "t_before": before,
        "t_after": [schedule.times[s + 1] for s in step.steps],
    }


def _forward(
    event: str,
    first: int,
    end: int,
    extra: bool,
    near_clean: bool,
    interval: int,
    times: list[float],
    kv: Any,
    text_tokens: list[int],
    null_tokens: int,
    width: int,
) -> dict[str, Any]:
    return {
        "event": event,
        "slice_point": first,
        "range_num": end,
        "denoising_range_num": len(times),
        "fwd_extra_1st_chunk": extra,
        "distill_nearly_clean_chunk": near_clean,
        "distill_interval": interval,
        "timestep": times,
        "kv_range_in_chunks": [list(seen) for seen in kv],
        "num_latent_frames_in": len(times) * width,
        "text_tokens_per_chunk_cond": text_tokens,
        "text_tokens_per_chunk_null": [null_tokens] * len(times),
    }
