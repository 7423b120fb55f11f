"""Training any base model further on clips: AdamW, averaged weights, one process or as many as ``torchrun`` starts.

Notable:

* A step is ``passes`` forward and backward passes of ``together`` sequences, dealt out to the processes; their gradients add up. What a
  pass shows depends on (seed, step, pass) alone, so neither a break nor the number of processes changes what is learnt.
* Weights, averages and moments are float32 whatever the checkpoint holds; products are bfloat16 (autocast) where the device is fast at them.
* Nothing of a layer but its input is kept for the backward pass of a model that is ``recomputed``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magi_core.checkpoint.find import CheckpointFiles
from magi_core.checkpoint.load import load_dit
from magi_core.errors import MagiError
from magi_core.kernels import attend
from magi_core.model import MagiDiT
from magi_core.model.layers import Layer, ResidentLayers
from magi_core.training.checkpoint import Keep, TrainingState, load_state, save_state, start_state, whole
from magi_core.training.dataset import ClipSet, Mix, draw_sample
from magi_core.training.dit import CURVE_FILE, LOG_FILE, STATE_FILE, Batch
from magi_core.training.layouts import CYCLE
from magi_core.training.losses import Losses
from magi_core.training.objective import Layout, add_noise, draw_times, squared_errors, velocities
from magi_core.training.precision import autocast
from magi_core.training.products import attend_products
from magi_core.training.ranks import Ranks, gathering, spread
from magi_core.training.schedule import check_finite, progress, rate_scale, say_if_done

RATE_TIMES_WIDTH = 0.06
"""Learning rate times hidden_size: 3e-4 for magi-nano, 2e-5 for 4.5B, 1e-5 for 24B, which is where the paper's last stage ends."""
LOG_EVERY = 10
SEEDS = 1 << 63

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneSettings:
    """How long and how a model is trained further. Exactly one of ``steps`` and ``minutes`` is set."""

    steps: int | None = None
    minutes: float | None = None
    passes: int = 4
    """Forward and backward passes of a step, over all processes."""
    together: int = 1
    """Sequences of a pass."""
    rate: float | None = None
    """Learning rate; None takes ``rate_times_width`` / hidden_size."""
    rate_times_width: float = RATE_TIMES_WIDTH
    weight_decay: float = 0.1
    """Of matrices; norms and biases are free."""
    warmup_steps: int = 20
    decay_share: float = 0.4
    """The learning rate falls linearly to zero over this last share of the run."""
    average: float = 0.995
    largest_gradient: float = 1.0
    """Gradients of a greater norm are scaled down to it."""
    mix: Mix = Mix()  # noqa: RUF009 - frozen
    seed: int = 0
    keep_minutes: float = 10.0
    """The state is saved, and the averaged weights are given to ``keep``, so often, and at the end."""
    autocast: bool | None = None
    """Whether products are bfloat16; None where the device is fast at them."""
    shard: bool = False

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise MagiError("give either steps or minutes, one of them")
        for name in ("steps", "minutes", "passes", "together", "rate", "keep_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise MagiError(f"{name} is {value}; it must be above 0")


class RecomputedLayers(ResidentLayers):
    """Layers that run a second time for the backward pass instead of keeping what they computed."""

    def on(self, device: torch.device) -> Iterable[Layer]:
        return [partial(checkpoint, layer, use_reentrant=False) for layer in self]


class Objective(nn.Module):
    """A model, the part of it that learns, and the error of its velocities, as one module: what is spread over processes."""

    def __init__(self, model: MagiDiT, learning: nn.Module) -> None:
        super().__init__()
        self.model = model
        if learning is not model:
            self.learning = learning

    def forward(self, batch: Batch) -> Tensor:
        """Squared errors [N, D] of a batch on the model's device, see ``squared_errors``."""
        noised = batch.noised
        return squared_errors(velocities(self.model, batch.layout, batch.sample, noised.x, noised.t), noised)


def recomputed(model: MagiDiT) -> None:
    """Keep nothing of the model's layers for the backward pass but their inputs."""
    model.videodit_blocks.layers = RecomputedLayers(model.videodit_blocks.get_submodule("layers").children())


def trainable(files: CheckpointFiles, device: torch.device) -> MagiDiT:
    """The transformer of a base model in float32, with weights that may be changed and an attention that has a backward.

    Raises MagiError for distilled and 8-bit models, which this training would undo.
    """
    dit = files.config.dit
    if dit.distill or dit.fp8_quant:
        kind = "8-bit" if dit.fp8_quant else "distilled"
        raise MagiError(
            f"{files.name} is {kind}; train the base model that it was made from, then make it {kind} again"
        )
    products = attend_products if device.type == "cpu" else attend
    model = load_dit(files, device=device, dtype=torch.float32, attend=products)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # those of a float32 file are mapped to it
    return model.train().requires_grad_(True)


def finetune(
    model: MagiDiT,
    clips: ClipSet,
    layouts: Mapping[str, Layout],
    folder: Path,
    settings: FinetuneSettings,
    ranks: Ranks,
    keep: Keep,
    learning: nn.Module | None = None,
) -> None:
    """Train ``model`` in place to the end of the schedule, going on from the state in ``folder`` if there is one.

    learning: the module whose weights learn, which the model reads; None: the model itself. layouts: by names of ``CYCLE``. Writes
    dit.safetensors (the state), dit.jsonl (losses) and dit.png (the curve) to ``folder``. Under torchrun all processes call it.
    Raises MagiError when the passes cannot be dealt out evenly, or the state is damaged.
    """
    if settings.passes % ranks.count:
        raise MagiError(
            f"{settings.passes} passes a step cannot be shared by {ranks.count} processes; take a multiple of {ranks.count}"
        )
    learning = model if learning is None else learning
    objective = spread(
        Objective(model, learning),
        iter(model.videodit_blocks.get_submodule("layers").children()),
        ranks,
        shard=settings.shard,
    )
    state = start_state(learning, {"adamw": optimizer(learning, settings)})
    path = folder / STATE_FILE
    if path.exists():
        load_state(state, path)
        log.info("training: going on from step %d", state.step)
        say_if_done(state, settings)
    history = Losses(folder / LOG_FILE if ranks.first else None, state.step, "fine-tuning")

    def note() -> None:
        history.add_up(ranks.total, layouts)
        history.write(state.step, state.seconds)

    def pause() -> None:
        if state.step % LOG_EVERY:
            note()
        save_state(state, path, write=ranks.first)
        averaged = whole(state.ema)
        with ranks.first_before_others():
            if ranks.first:
                history.draw(folder / CURVE_FILE)
                keep(averaged, state.step)

    kept = state.seconds
    while progress(state, settings) < 1:
        begun = time.monotonic()
        _set_rate(state, settings, model.config.hidden_size)
        train_step(state, objective, clips, layouts, settings, ranks, history)
        state.seconds = ranks.as_first(state.seconds + time.monotonic() - begun)
        if state.step % LOG_EVERY == 0:
            note()
        if state.seconds - kept >= 60 * settings.keep_minutes and progress(state, settings) < 1:
            pause()
            kept = state.seconds
    pause()


def optimizer(model: nn.Module, settings: FinetuneSettings) -> torch.optim.Optimizer:
    """AdamW as the paper has it (section 4): betas 0.9 and 0.95, decay of matrices only."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def train_step(
    state: TrainingState,
    objective: nn.Module,
    clips: ClipSet,
    layouts: Mapping[str, Layout],
    settings: FinetuneSettings,
    ranks: Ranks,
    history: Losses,
) -> None:
    """One step: this process's passes, their gradients added up over all processes, then the optimiser and the average."""
    own = range(ranks.rank, settings.passes, ranks.count)
    batches = [draw_pass(clips, layouts, settings, state.step, number) for number in own]
    frames = float(ranks.total(sum((batch.noised.weight.sum() for batch in batches), torch.zeros(()))))
    for batch in batches:
        moved = Batch(batch.name, batch.layout, batch.sample.to(ranks.device), batch.noised.to(ranks.device))
        with gathering(objective, last=batch is batches[-1]):
            with autocast(ranks.device, wanted=settings.autocast):
                errors: Tensor = objective(moved)
            loss = errors.sum() * (ranks.count / frames)  # gradients are averaged over processes, the sum is meant
            torch.autograd.backward(loss)
        history.add(batch.name, errors.detach().cpu(), batch.noised.weight, batch.noised.t)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.largest_gradient)
    check_finite(norm, state.step)
    for each in state.optimizers.values():
        each.step()
        each.zero_grad()
    state.step += 1
    state.average(min(settings.average, state.step / (state.step + 10)))


def draw_pass(
    clips: ClipSet, layouts: Mapping[str, Layout], settings: FinetuneSettings, step: int, number: int
) -> Batch:
    """The sequences of one pass; equal arguments give equal ones."""
    cycle = [name for name in CYCLE if name in layouts]
    name = cycle[(step * settings.passes + number) % len(cycle)]
    generator = torch.Generator().manual_seed(((settings.seed * 1_000_003 + step) * 1_009 + number) % SEEDS)
    layout = layouts[name]
    sample = draw_sample(clips, layout, settings.together, settings.mix, generator)
    times = draw_times(layout, settings.together, generator)
    return Batch(name, layout, sample, add_noise(sample, layout, times, generator))


def _set_rate(state: TrainingState, settings: FinetuneSettings, width: int) -> None:
    scale = rate_scale(state, settings)
    for group in state.optimizers["adamw"].param_groups:
        group["lr"] = (settings.rate or settings.rate_times_width / width) * scale
