"""Shortcut distillation: one pass a step with the guidance folded in, one student for 64, 32, 16 and 8 steps.

After "One Step Diffusion via Shortcut Models" (arXiv 2410.12557) and section 2.3 of the MAGI-1 report. Notable:

* The smallest step is taught the teacher's guided velocity. A step twice as large is taught what two smaller ones come to: the mean of
  their velocities, each weighted by how much time it takes. The averaged student makes those two.
* The student's velocity is what the sampler computes in its single pass: times of the sampler's own schedule, the step size as the
  sampler embeds it, clean chunks told nothing in the same pass, and the nearly clean chunk blended with a copy that sees only itself.
* A layout's chunks step together, as a window does, so that the second half-step reads neighbours that have moved.
* The student begins as the teacher: step sizes are embedded as nothing, and differ only as far as training makes them.

Shape letters as in ``objective``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from magi_core.config import Sampling
from magi_core.denoise.guidance import NEAR_CLEAN_WEIGHT, guidance_weights
from magi_core.denoise.schedule import step_embedding, timesteps
from magi_core.errors import MagiError
from magi_core.model import MagiDiT
from magi_core.model.embedders import sinusoid
from magi_core.training.checkpoint import TrainingState, start_state
from magi_core.training.dataset import ClipSet, Mix, draw_sample
from magi_core.training.dit import Batch, DiTSettings, averaged_model, optimizers, resume, run_steps
from magi_core.training.objective import (
    CLEAN_T,
    LAYOUTS,
    Layout,
    Noised,
    Sample,
    add_noise,
    squared_errors,
    velocities,
)
from magi_core.training.products import attend_products


@dataclass(frozen=True)
class Distillation:
    """How a student is taught; ``dit.batch`` counts the sequences of every layout in one step."""

    cycle: tuple[int, ...] = (64,) * 8 + (32, 16, 8)
    """Step counts that the batches take in turn. The largest is taught by the teacher, each other one by its double."""
    dit: DiTSettings = DiTSettings(
        steps=3000,
        batch=MappingProxyType({"first": 10, "next": 4, "start": 3, "stream": 4}),
        mix=Mix(null_caption=0.0, late_row=0.0),
        muon_lr=0.004,
        adamw_lr=3e-4,
        decay_share=1.0,
    )

    def __post_init__(self) -> None:
        for count in self.cycle:
            if count % 4 or (count != max(self.cycle) and 2 * count not in self.cycle):
                raise MagiError(
                    f"the step counts are {list(self.cycle)}; each must be a multiple of 4, and all but the largest half of another"
                )


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
    text = replace(sample, null=clean, dropped=clean)
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
    ahead = [round(layout.stagger * num_steps) * place for place in reversed(range(len(noisy)))]
    leading = noisy[:1] if layout.stagger else noisy
    near = tuple(chunk for chunk in leading if layout.reads[chunk] != (chunk, chunk + 1))
    choice = torch.arange(ahead[0], num_steps)
    if near:
        late = torch.tensor(timesteps(num_steps, ""), dtype=torch.float64)[choice] > threshold
        late_now = bool(torch.rand((), generator=generator) < late.double().mean())
        choice = choice[late == late_now]
        near = near if late_now else ()
    picked = choice[torch.randint(len(choice), (count, 1 if layout.stagger else len(noisy)), generator=generator)]
    steps = torch.zeros(count, len(layout.places), dtype=torch.long)
    steps[:, noisy] = picked - ahead[0] + torch.tensor(ahead)
    return steps, near


def draw_shortcut(
    clips: ClipSet, name: str, count: int, num_steps: int, mix: Mix, threshold: float, generator: torch.Generator
) -> Shortcut:
    """``count`` sequences of the layout ``name`` that are about to take a step of ``num_steps``; the target is still to be made."""
    layout = LAYOUTS[name]
    sample = draw_sample(clips, layout, count, mix, generator)
    steps, near = draw_steps(layout, num_steps, threshold, count, generator)
    noised = add_noise(sample, layout, times_of(layout, steps, num_steps), generator)
    return Shortcut(f"{num_steps} steps", layout, sample, noised, num_steps, steps, near)


# ---- training ----------------------------------------------------------------------------------------------------------


def distil_dit(
    teacher: MagiDiT, sampling: Sampling, clips: ClipSet, folder: Path, settings: Distillation, device: str = "cpu"
) -> MagiDiT:
    """Teach a student to the end of the schedule, going on from the state in ``folder`` if there is one; returns the averaged student.

    teacher: a base model, sampling: its guidance. ``folder`` receives what ``train_dit`` writes.
    """
    teacher = teacher.to(device)
    teacher.attend = attend_products
    state = start_student(teacher, folder, settings, device)
    average = MagiDiT(cast(MagiDiT, state.model).config, attend=attend_products).requires_grad_(False)
    average.load_state_dict(state.ema, assign=True)  # the same memory: it follows the average by itself
    batches = settings.dit.batch
    threshold = sampling.distill_nearly_clean_chunk_threshold

    def draw(generator: torch.Generator) -> list[Shortcut]:
        turn = state.step * len(batches)
        counts = [settings.cycle[(turn + i) % len(settings.cycle)] for i in range(len(batches))]
        return [
            draw_shortcut(clips, name, count, num_steps, settings.dit.mix, threshold, generator)
            for (name, count), num_steps in zip(batches.items(), counts, strict=True)
        ]

    def errors(batch: Shortcut) -> Tensor:
        sample, noised = batch.sample.to(device), batch.noised.to(device)
        with torch.no_grad():
            target = self_consistent(teacher, average, sampling, batch, sample, noised, max(settings.cycle))
        velocity = shortcut_velocity(
            cast(MagiDiT, state.model), batch.layout, batch.near, sample, noised.x, noised.t, batch.num_steps
        )
        return squared_errors(velocity, replace(noised, target=target))

    run_steps(state, folder, settings.dit, device, draw, errors)
    return averaged_model(state, average.config)


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


def start_student(teacher: MagiDiT, folder: Path, settings: Distillation, device: str) -> TrainingState:
    """The state that ``folder`` holds, or that of a student with the teacher's weights."""
    student = MagiDiT(replace(teacher.config, distill=True, params_dtype=torch.float32), attend=attend_products)
    student.load_state_dict(teacher.state_dict())
    silence_step_sizes(student, settings.cycle)
    state = start_state(student.to(device), optimizers(student, settings.dit))
    resume(state, folder)
    return state


@torch.no_grad()
def silence_step_sizes(student: MagiDiT, counts: Sequence[int]) -> None:
    """Change the timestep embedder's last layer so that step sizes come out as zero and the schedule's times as before.

    A base model has never seen step sizes, and what its embedder makes of them is many times as large as a time's embedding.
    """
    last = cast(nn.Linear, student.t_embedder.mlp[-1])
    times = torch.tensor([*timesteps(max(counts), ""), CLEAN_T])
    sizes = torch.tensor([step_embedding(count, 1) for count in sorted(set(counts))])
    features = student.t_embedder.mlp[:-1](sinusoid(torch.cat([times, sizes]).to(last.weight)))
    wanted = torch.cat([torch.zeros(len(times), last.out_features).to(last.weight), -last(features[len(times) :])])
    rows = torch.cat([features, torch.ones_like(features[:, :1])], dim=1).double()
    little = 1e-2 * torch.eye(rows.shape[1]).to(rows)
    nothing = torch.zeros(len(little), wanted.shape[1]).to(rows)
    change = torch.linalg.lstsq(torch.cat([rows, little]), torch.cat([wanted.double(), nothing])).solution
    last.weight.add_(change[:-1].T.to(last.weight))
    last.bias.add_(change[-1].to(last.bias))
