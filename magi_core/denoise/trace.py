"""A whole run of the schedule as a list of events, for comparison with recorded runs; no model takes part.

The events are those of the reference: what each forward pass is given, how times move, when a chunk is finished.
"""

from __future__ import annotations

from typing import Any

import torch

from magi_core.config import Sampling
from magi_core.denoise.schedule import (
    Schedule,
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
    schedule, width = Schedule.of(sampling), sampling.chunk_width
    offset, end = prefix_frames // width, chunk_count(new_frames, prefix_frames, width)
    clean = torch.tensor(sampling.clean_t, dtype=torch.float32).item()
    events: list[dict[str, Any]] = []
    if offset:
        events.append(
            {
                "event": "extract_prefix",
                "slice_point": 0,
                "range_num": offset,
                "denoising_range_num": offset,
                "fwd_extra_1st_chunk": False,
                "distill_nearly_clean_chunk": False,
                "distill_interval": schedule.intervals[0],
                "timestep": [clean] * offset,
                "kv_range_in_chunks": [list(kv_chunks(chunk, prefix_kv_length(sampling))) for chunk in range(offset)],
                "num_latent_frames_in": offset * width,
                "text_tokens_per_chunk_cond": [null_tokens] * offset,
                "text_tokens_per_chunk_null": [null_tokens] * offset,
            }
        )
    for number, step in enumerate(schedule.run(offset, end)):
        extra, chunks = int(step.extra), len(step.chunks)
        stage, j = divmod(number, schedule.stage_steps)
        before = [schedule.times[s] for s in step.steps]
        events.append(
            {
                "event": "forward",
                "slice_point": step.chunks.start - extra,
                "range_num": step.chunks.stop,
                "denoising_range_num": extra + chunks,
                "fwd_extra_1st_chunk": step.extra,
                "distill_nearly_clean_chunk": step.near_clean,
                "distill_interval": step.interval,
                "timestep": [clean] * extra + before,
                "kv_range_in_chunks": [list(seen) for seen in step.kv_chunks],
                "num_latent_frames_in": (extra + chunks) * width,
                "text_tokens_per_chunk_cond": [null_tokens] * extra + [text_tokens] * chunks,
                "text_tokens_per_chunk_null": [null_tokens] * (extra + chunks),
            }
        )
        events.append(
            {
                "event": "integrate",
                "step": number,
                "denoise_step_per_stage": schedule.stage_steps,
                "denoise_stage": stage,
                "denoise_idx": j,
                "chunk_offset": offset,
                **window_stage(offset + stage, end, sampling.window_size, offset)._asdict(),
                "t_before": before,
                "t_after": [schedule.times[s + 1] for s in step.steps],
            }
        )
        if step.steps[0] == sampling.num_steps - 1:
            frames = width - first_new_frame(step.chunks.start, prefix_frames, width)
            events.append({"event": "yield", "chunk_idx": step.chunks.start - offset, "num_latent_frames": frames})
    return events
