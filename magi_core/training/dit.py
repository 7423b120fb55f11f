"""The DiT's training loop: batches of mixed situations, Muon and AdamW, averaged weights, states to go on from.

Notable:

* The batch of step k is drawn from (seed, k) alone, so a resumed run sees what an unbroken one would, to the bit.
* With ``steps`` the schedule counts steps and a run can be repeated to the bit on one machine; with ``minutes`` it follows the clock,
  so that a run ends in time on a machine that others use as well.
* bfloat16 autocast where the device is fast at it (``precision``), float32 weights and averages.
* The averaged weights are handed out on the way, to be looked at; nothing of that comes back into the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from magi_core.config import DiTConfig
from magi_core.errors import MagiError
from magi_core.model import MagiDiT
from magi_core.training.checkpoint import Keep, TrainingState, load_state, save_state, start_state, whole
from magi_core.training.dataset import ClipSet, Mix, draw_sample
from magi_core.training.losses import Losses
from magi_core.training.muon import Muon
from magi_core.training.objective import (
    LAYOUTS,
    ROLLOUTS,
    Layout,
    Noised,
    Sample,
    add_noise,
    draw_times,
    squared_errors,
    velocities,
)
from magi_core.training.own_history import TakenBack, draw_taken_back, with_own_history
from magi_core.training.precision import autocast
from magi_core.training.products import attend_products
from magi_core.training.schedule import check_finite, progress, rate_scale, say_if_done

STATE_FILE, LOG_FILE, CURVE_FILE = "dit.safetensors", "dit.jsonl", "dit.png"
LOG_EVERY = 20
SEEDS = 2**32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiTSettings:
    """How long and how the DiT is trained. Exactly one of ``steps`` and ``minutes`` is set."""

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    batch: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType(
            {"first": 20, "next": 7, "pair": 3, "start": 2, "behind": 4, "stream": 3, "far": 3}
        )
    )
    """Sequences of every layout in one step."""
    mix: Mix = Mix()  # noqa: RUF009 - frozen
    muon_lr: float = 0.02
    adamw_lr: float = 1.5e-3
    weight_decay: float = 0.01
    warmup_steps: int = 40
    decay_share: float = 0.4
    """The learning rate falls linearly to zero over this last share of the run."""
    average: float = 0.995
    save_seconds: float = 300.0
    keep_steps: int = 500
    """The averaged weights are given to ``keep`` every so many steps, and at the end; 0: at the end alone."""
    workers: int = 2
    """Layouts worked on at the same time; torch's threads are shared out among them."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise MagiError("give either steps or minutes, one of them")
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise MagiError(f"{name} is {value}; it must be above 0")
        if not 0 <= self.seed < SEEDS:
            raise MagiError(f"seed is {self.seed}; it must be from 0 to {SEEDS - 1}")
        if self.keep_steps < 0:
            raise MagiError(f"keep_steps is {self.keep_steps}; it must be 0, for the end alone, or more")


@dataclass(frozen=True)
class Batch:
    """Sequences of one layout; ``name`` is what their losses are logged under."""

    name: str
    layout: Layout
    sample: Sample
    noised: Noised


@dataclass(frozen=True)
class Drawn(Batch):
    """With the sequences that get a history of the model's own, None for none."""

    taken_back: TakenBack | None


AnyBatch = TypeVar("AnyBatch", bound=Batch)


def train_dit(
    config: DiTConfig,
    clips: ClipSet,
    folder: Path,
    settings: DiTSettings,
    keep: Keep,
    device: str = "cpu",
    initial: Mapping[str, Tensor] | None = None,
    layouts: Mapping[str, Layout] = MappingProxyType(LAYOUTS | ROLLOUTS),
    rollouts: ClipSet | None = None,
) -> None:
    """Train to the end of the schedule, going on from the state in ``folder`` if there is one.

    initial: weights by their public names that a new run begins with, None for those of a fresh network. layouts: those that the
    settings' batch names. rollouts: what is shown where a layout begins with chunks of the model's own; MagiError
    where there are none.
    Writes ``dit.safetensors`` (the state), ``dit.jsonl`` (losses) and ``dit.png`` (the curve) to ``folder``.
    """
    state = start_dit(config, folder, settings, device, initial)

    def source(layout: Layout) -> ClipSet:
        if layout.own and rollouts is None:
            raise MagiError("a batch that goes on from the model's own seconds needs rollouts, and none were given")
        return rollouts if layout.own and rollouts is not None else clips

    def draw(generator: torch.Generator) -> list[Drawn]:
        return [
            draw_batch(source(layouts[name]), name, layouts[name], count, settings.mix, generator)
            for name, count in settings.batch.items()
        ]

    def errors(batch: Drawn) -> Tensor:
        sample, noised, model = batch.sample.to(device), batch.noised.to(device), cast(MagiDiT, state.model)
        if batch.taken_back is not None:
            noised = with_own_history(model, batch.layout, sample, noised, batch.taken_back.to(device))
        return squared_errors(velocities(model, batch.layout, sample, noised.x, noised.t), noised)

    run_steps(state, folder, settings, device, draw, errors, keep)


def draw_batch(clips: ClipSet, name: str, layout: Layout, count: int, mix: Mix, generator: torch.Generator) -> Drawn:
    """``count`` noised sequences of a layout, whose losses are logged under ``name``."""
    sample = draw_sample(clips, layout, count, mix, generator)
    noised = add_noise(sample, layout, draw_times(layout, count, generator), generator)
    return Drawn(name, layout, sample, noised, draw_taken_back(layout, sample, mix.own_history, generator))


def run_steps(
    state: TrainingState,
    folder: Path,
    settings: DiTSettings,
    device: str,
    draw: Callable[[torch.Generator], Sequence[AnyBatch]],
    errors: Callable[[AnyBatch], Tensor],
    keep: Keep,
) -> None:
    """Train ``state`` to the end of the schedule; writes what ``train_dit`` says to ``folder``.

    draw: the batches of a step. errors: of a batch, [N, D] as ``squared_errors`` gives them; differentiable, called under autocast.
    """
    path = folder / STATE_FILE
    history = Losses(folder / LOG_FILE, state.step)
    saved = state.seconds
    say_if_done(state, settings)
    with _workers(settings.workers) as pool:
        while progress(state, settings) < 1:
            begun = time.monotonic()
            _set_rates(state, settings)
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + state.step)
            train_step(state, draw(generator), errors, settings, device, history, pool)
            state.seconds += time.monotonic() - begun
            if state.step % LOG_EVERY == 0:
                history.write(state.step, state.seconds)
            if state.seconds - saved >= settings.save_seconds:
                save_state(state, path)
                history.draw(folder / CURVE_FILE)
                saved = state.seconds
            if settings.keep_steps and state.step % settings.keep_steps == 0 and progress(state, settings) < 1:
                keep(whole(state.ema), state.step)
    save_state(state, path)
    history.draw(folder / CURVE_FILE)
    keep(whole(state.ema), state.step)


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads share torch's threads among them: small operations gain nothing from being split over cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // count))
    try:
        with ThreadPoolExecutor(count) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def start_dit(
    config: DiTConfig,
    folder: Path,
    settings: DiTSettings,
    device: str = "cpu",
    initial: Mapping[str, Tensor] | None = None,
) -> TrainingState:
    """The state that ``folder`` holds, or one with the ``initial`` weights, or that of a fresh network."""
    torch.manual_seed(settings.seed)
    model = MagiDiT(config, attend=attend_products)
    initialise(model)
    if initial is not None:
        model.load_state_dict(initial)
    state = start_state(model.to(device), optimizers(model, settings))
    resume(state, folder)
    return state


def resume(state: TrainingState, folder: Path) -> None:
    """Fill ``state`` with the one in ``folder`` if there is one."""
    if (folder / STATE_FILE).exists():
        load_state(state, folder / STATE_FILE)
        log.info("dit: going on from step %d", state.step)


def initialise(model: MagiDiT) -> None:
    """Initial weights where they differ from the modules' own: gates that let through and still depend on the condition, silent output."""
    for name, parameter in model.named_parameters():
        if name.endswith("ada_modulate_layer.proj.0.weight"):
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)
        elif name.endswith("ada_modulate_layer.proj.0.bias"):
            nn.init.ones_(parameter)
    nn.init.zeros_(model.final_linear.linear.weight)


def optimizers(model: MagiDiT, settings: DiTSettings) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for everything else."""
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if name.startswith("videodit_blocks.layers.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in named.values() if id(p) not in chosen]
    return {
        "muon": Muon(matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay),
        "adamw": torch.optim.AdamW(rest, lr=settings.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    }


def train_step(
    state: TrainingState,
    batches: Sequence[AnyBatch],
    errors: Callable[[AnyBatch], Tensor],
    settings: DiTSettings,
    device: str,
    history: Losses,
    pool: ThreadPoolExecutor,
) -> None:
    """One step: gradients of the batches side by side, added up in order, then both optimisers and the average."""
    frames = sum(float(batch.noised.weight.sum()) for batch in batches)
    parameters = list(state.model.parameters())

    def gradients(batch: AnyBatch) -> tuple[Tensor, tuple[Tensor, ...]]:
        with autocast(torch.device(device)):
            squared = errors(batch)
        return squared.detach().cpu(), torch.autograd.grad(squared.sum() / frames, parameters)

    for batch, (squared, grads) in zip(batches, pool.map(gradients, batches), strict=True):
        history.add(batch.name, squared, batch.noised.weight, batch.noised.t)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
    check_finite(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]), state.step)
    nn.utils.clip_grad_norm_(state.optimizers["adamw"].param_groups[0]["params"], 1.0)
    list(pool.map(_apply, state.optimizers.values()))
    state.step += 1
    state.average(min(settings.average, state.step / (state.step + 10)))


def _apply(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()


def _set_rates(state: TrainingState, settings: DiTSettings) -> None:
    scale = rate_scale(state, settings)
    for name, rate in (("muon", settings.muon_lr), ("adamw", settings.adamw_lr)):
        for group in state.optimizers[name].param_groups:
            group["lr"] = rate * scale
