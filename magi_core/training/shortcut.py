"""The shortcut objective: what a distilled model should answer when it is told how large its step is.

After "One Step Diffusion via Shortcut Models" (arXiv 2410.12557) and section 2.3 of the MAGI-1 report. Notable:

* The smallest step is taught the teacher's guided velocity. A step twice as large is taught what two smaller ones come to: the mean of
  their velocities, each weighted by how much time it takes.
* The student's velocity is what the sampler computes in its single pass: times of the sampler's own schedule, the step size as the
  sampler embeds it, clean chunks told nothing in the same pass, and the nearly clean chunk blended with a copy that sees only itself.
* A layout's chunks step together, as a window does, so that the second half-step reads neighbours that have moved.

Shape letters as in ``objective``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise.guidance import NEAR_CLEAN_WEIGHT, guidance_weights
from magi_core.denoise.schedule import step_embedding, timesteps
from magi_core.model import MagiDiT
from magi_core.training.dataset import ClipSet, Mix, draw_sample
from magi_core.training.dit import Batch
from magi_core.training.objective import CLEAN_T, Layout, Noised, Sample, add_noise, velocities


@dataclass(frozen=True)
class Shortcut(Batch):
    """Sequences whose chunks take one step of ``num_steps``; steps [N, D] is how many lie behind each (0 for clean chunks)."""

    num_steps: int
    steps: Tensor
    near: tuple[int, ...]
    """Chunks that are nearly clean and also read others: the sampler looks at them alone too."""


# ---- velocities --------------------------------------------------------------------------------------------------------


def guided_velocity(
    teacher: MagiDiT, sampling: Sampling, layout: Layout, sample: Sample, x: Tensor, t: Tensor
) -> Tensor:
    """The velocity that a base model's passes come to (spec 7.1) for x [N, C, T, H, W] at t [N, D]; that of clean chunks is no use."""
    clean = torch.tensor(layout.clean, device=x.device).expand(t.shape)
    weights = guidance_weights(sampling, t.flatten().tolist()).reshape(3, *t.shape).to(x.device).masked_fill(clean, 0)
    everywhere = torch.ones_like(clean)
    text = replace(sample, dropped=clean)
    untold = replace(sample, null=everywhere, dropped=everywhere)
    alone = replace(layout, reads=tuple((chunk, chunk + 1) for chunk in range(len(layout.reads))))
    total = torch.zeros_like(x)
    for told, seen, weight in zip((untold, untold, text), (alone, layout, layout), weights, strict=True):
        if weight.any():
            total += velocities(teacher, seen, told, x, t) * _by_frame(weight, x)
    return total


def shortcut_velocity(
    student: MagiDiT, layout: Layout, near: Sequence[int], sample: Sample, x: Tensor, t: Tensor, num_steps: int
) -> Tensor:
    """The velocity that a distilled model's single pass comes to when it makes ``num_steps`` steps (spec 7.2). Shapes as above.

    near: the chunks whose velocity is blended with that of a copy that sees only itself.
    """
    chunks = len(layout.places)
    order = [*range(chunks), *near]
    copies = range(chunks, len(order))
    shown = Layout(
        clean=(*layout.clean, *(False for _ in near)),
        places=(*layout.places, *(max(layout.places) + 1 for _ in near)),
        reads=(*layout.reads, *((copy, copy + 1) for copy in copies)),
    )
    told = replace(
        sample,
        text=torch.unflatten(sample.text, 0, (-1, chunks))[:, order].flatten(0, 1),
        text_mask=torch.unflatten(sample.text_mask, 0, (-1, chunks))[:, order].flatten(0, 1),
        null=sample.null[:, order],
        dropped=torch.zeros_like(sample.dropped[:, order]),
    )
    seen = torch.unflatten(x, 2, (chunks, -1))[:, :, order].flatten(2, 3)
    velocity = velocities(student, shown, told, seen, t[:, order], step_embedding(num_steps, 1))
    parts = list(torch.unflatten(velocity, 2, (len(order), -1)).unbind(2))
    for chunk, copy in zip(near, copies, strict=True):
        parts[chunk] = NEAR_CLEAN_WEIGHT * parts[chunk] + (1 - NEAR_CLEAN_WEIGHT) * parts[copy]
    return torch.cat(parts[:chunks], dim=2)


Velocity = Callable[[Tensor, Tensor, int], Tensor]
"""Velocity [N, C, T, H, W] of x [N, C, T, H, W] at times t [N, D] for a number of steps."""


def two_halves(
    velocity: Velocity, x: Tensor, moves: Tensor, times: tuple[Tensor, Tensor, Tensor], num_steps: int
) -> Tensor:
    """The velocity of one step of ``num_steps`` that goes where two of 2 * num_steps go (arXiv 2410.12557, equation 4).

    times: [N, D] before, between and after the halves. moves: 1 where x moves, 0 in frames that stay (clean chunks, given frames).
    """
    begin, middle, end = times
    first = velocity(x, begin, 2 * num_steps)
    here, there = _by_frame(middle - begin, x), _by_frame(end - middle, x)
    second = velocity(x + here * first * moves, middle, 2 * num_steps)
    return torch.where(here + there > 0, (here * first + there * second) / (here + there), 0.0)


def _by_frame(values: Tensor, x: Tensor) -> Tensor:
    """Values [N, D] of chunks as [N, 1, T, 1, 1] for x [N, C, T, H, W]."""
    return values.repeat_interleave(x.shape[2] // values.shape[1], dim=1)[:, None, :, None, None]


# ---- what a batch shows ------------------------------------------------------------------------------------------------


def times_of(layout: Layout, steps: Tensor, num_steps: int) -> Tensor:
    """Times [N, D] of chunks with ``steps`` [N, D] of ``num_steps`` behind them; clean chunks have the label of a clean chunk."""
    return torch.where(torch.tensor(layout.clean), CLEAN_T, torch.tensor(timesteps(num_steps, ""))[steps])


def draw_steps(
    layout: Layout, num_steps: int, threshold: float, count: int, generator: torch.Generator
) -> tuple[Tensor, tuple[int, ...]]:
    """Denoise steps [count, D] behind each chunk, all equally likely, and which chunks are nearly clean (in all sequences or in none).

    threshold: the time from which on a chunk is nearly clean where none before it is in flight (spec 8.4.5).
    """
    noisy = [chunk for chunk, clean in enumerate(layout.clean) if not clean]
    ahead = [round((layout.stagger or 0) * num_steps) * place for place in reversed(range(len(noisy)))]
    leading = noisy if layout.stagger is None else noisy[:1]
    near = tuple(chunk for chunk in leading if layout.reads[chunk] != (chunk, chunk + 1))
    choice = torch.arange(ahead[0], num_steps)
    if near:
        late = torch.tensor(timesteps(num_steps, ""), dtype=torch.float64)[choice] > threshold
        late_now = bool(torch.rand((), generator=generator) < late.double().mean())
        choice = choice[late == late_now]
        near = near if late_now else ()
    picked = choice[
        torch.randint(len(choice), (count, len(noisy) if layout.stagger is None else 1), generator=generator)
    ]
    steps = torch.zeros(count, len(layout.places), dtype=torch.long)
    steps[:, noisy] = picked - ahead[0] + torch.tensor(ahead)
    return steps, near


def draw_shortcut(
    clips: ClipSet, layout: Layout, count: int, num_steps: int, mix: Mix, threshold: float, generator: torch.Generator
) -> Shortcut:
    """``count`` sequences of a layout that are about to take a step of ``num_steps``; the target is still to be made."""
    sample = draw_sample(clips, layout, count, mix, generator)
    steps, near = draw_steps(layout, num_steps, threshold, count, generator)
    noised = add_noise(sample, layout, times_of(layout, steps, num_steps), generator)
    return Shortcut(f"{num_steps} steps", layout, sample, noised, num_steps, steps, near)


def self_consistent(
    teacher: MagiDiT, student: MagiDiT, sampling: Sampling, batch: Shortcut, sample: Sample, noised: Noised, finest: int
) -> Tensor:
    """What the student should answer to a batch: the teacher's guided velocity for the finest steps, else what two halves come to."""
    if batch.num_steps == finest:
        return guided_velocity(teacher, sampling, batch.layout, sample, noised.x, noised.t)

    def velocity(x: Tensor, t: Tensor, num_steps: int) -> Tensor:
        return shortcut_velocity(student, batch.layout, batch.near, sample, x, t, num_steps)

    doubled = 2 * batch.steps
    clean = torch.tensor(batch.layout.clean)
    begin, middle, end = (
        times_of(batch.layout, doubled + torch.where(clean, 0, halves), 2 * batch.num_steps).to(noised.x.device)
        for halves in (0, 1, 2)
    )
    return two_halves(velocity, noised.x, noised.weight, (begin, middle, end), batch.num_steps)
