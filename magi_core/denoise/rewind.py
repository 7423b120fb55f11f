"""Back to an earlier chunk of a session, to make it and what follows once more: with another seed, or other words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from magi_core.denoise.checks import check_latents
from magi_core.denoise.noise import check_seed
from magi_core.denoise.schedule import first_new_frame
from magi_core.denoise.session import Session
from magi_core.denoise.state import SessionState
from magi_core.errors import MagiError


def rewind(
    session: Session, chunk: int, clean: Callable[[int], Tensor], *, seed: int | None = None, keep_plan: bool = True
) -> None:
    """Stand before ``chunk``, with all before it clean: as after the window ran dry there. What was in flight is forgotten.

    session: as it was before ``chunk`` was finished. clean: ``FinishedChunk.latents`` of a chunk; asked for those that the run depends
    on. seed: of all noise from here on. keep_plan=False forgets what was planned from ``chunk`` on, keyframes too.
    Raises MagiError where the session stands behind ``chunk`` already, or its plan ends before it.
    """
    state, position, schedule = session.state, session.state.position, session.schedule
    if not session.next_chunk <= chunk < position.planned:
        raise MagiError(
            f"chunk is {chunk}; one can go back to the chunks {session.next_chunk} to {position.planned - 1}"
        )
    shape = (1, session.model.config.latent_channels, None, session.height, session.width)
    width = session.sampling.chunk_width
    parts = {}
    scenes = tuple(scene for scene in state.scenes if keep_plan or scene < chunk)
    for number in schedule.depends_on(chunk, session.model.config.num_layers, scenes):
        if number in state.clean:
            parts[number] = state.clean[number]
            continue
        skip = first_new_frame(number, session.prefix_frames, width)
        latents = check_latents(f"chunk {number}", clean(number), session.model, shape)
        parts[number] = torch.cat([state.held[number][:, :, :skip], latents], dim=2) if skip else latents
    begun = session.prefix_frames // width  # the prefix's incomplete chunk, which stays what it is
    kept = range(chunk, position.planned if keep_plan else chunk)
    there = replace(position, offset=chunk, planned=kept.stop, clock=chunk * schedule.stage_steps, drain_at=None)
    session.state = SessionState(
        there,
        captions={number: caption for number, caption in state.captions.items() if number in kept},
        held={number: held for number, held in state.held.items() if number in kept or number == begun >= chunk},
        in_flight={},
        clean=parts,
        cache=None,
        scenes=there.scenes_left(schedule, scenes),
    )
    session.seed = session.seed if seed is None else check_seed(seed)
