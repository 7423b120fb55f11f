"""``magi distill``: a student of one pass a step, with the guidance folded in, from a base model.

Notable:

* The student is the released distilled models' kind: the same tensors as its teacher, told the step size as well.
* It begins as the teacher: step sizes are embedded as nothing, and differ only as far as training makes them.
* The averaged student takes the half-steps that teach it the larger ones (``shortcut``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from magi_core.checkpoint.find import CheckpointFiles, find_checkpoint
from magi_core.checkpoint.load import load_dit
from magi_core.config import Sampling
from magi_core.denoise.schedule import step_embedding, timesteps
from magi_core.denoise.storage import fingerprint
from magi_core.errors import MagiError
from magi_core.model import MagiDiT
from magi_core.model.embedders import sinusoid
from magi_core.parts import Parts
from magi_core.run_lock import alone
from magi_core.training.checkpoint import Keep, TrainingState, start_state
from magi_core.training.dataset import ClipSet, Mix
from magi_core.training.dit import DiTSettings, optimizers, resume, run_steps
from magi_core.training.export import check_other_folder, write_model
from magi_core.training.layouts import layouts_for
from magi_core.training.objective import CLEAN_T, squared_errors
from magi_core.training.origin import claim
from magi_core.training.products import attend_products
from magi_core.training.shards import make_shards, open_clips, shards_of
from magi_core.training.shortcut import Shortcut, draw_shortcut, self_consistent, shortcut_velocity
from magi_core.training.train import NANO, WORK
from magi_core.vae import load_vae

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distillation:
    """How a student is taught; the defaults are those of the shipped magi-nano-distilled."""

    world: str = "narrow"
    """Of the clips, a name of ``worlds.clips.WORLDS``."""
    clips: int = 12_000
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


def distil(
    teacher: str | Path,
    out: Path,
    settings: Distillation,
    clips: Path | None = None,
    watch: Callable[[int], None] | None = None,
) -> None:
    """Make a distilled model of the base model ``teacher`` in the folder ``out``, going on from what is there.

    ``out`` becomes a model folder with the teacher's VAE, text encoder and special tokens; states, losses and the loss curve are in
    ``out``/training. clips: a folder of clips as ``make_shards`` writes them; without one they are made in ``out``/training/clips.
    watch: called with the step whenever ``out`` has got its weights, see ``DiTSettings.keep_steps``.
    Raises MagiError where the teacher is no whole base model of magi-nano's sizes, or something in ``out`` is damaged or of another run.
    """
    files = find_checkpoint(teacher)
    _check_whole(files)
    assert files.vae  # noqa: S101 - for the type checker
    check_other_folder(files, out)
    if clips is not None:
        shards_of(clips, load_vae(files.vae))
    model = load_dit(files, dtype=torch.float32)
    claim(out, out / WORK, {"command": "distill", "teacher": fingerprint(model)})
    with alone(out / WORK):
        _distil(files, model, out, settings, clips, watch)


def _distil(
    files: CheckpointFiles,
    teacher: MagiDiT,
    out: Path,
    settings: Distillation,
    clips: Path | None,
    watch: Callable[[int], None] | None,
) -> None:
    work, parts = out / WORK, Parts(files)
    if clips is None:
        clips = work / "clips"
        make_shards(clips, parts.vae, settings.world, settings.clips, settings.dit.seed)
    dit, sampling = files.config.dit, files.config.sampling
    shown = open_clips([clips], parts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = replace(
        files.config,
        dit=replace(dit, distill=True),
        sampling=replace(sampling, cfg_number=1, num_steps=min(settings.cycle)),
    )

    def keep(weights: Mapping[str, Tensor], step: int) -> None:
        write_model(replace(files, config=config), weights, out)
        if watch is not None:
            watch(step)

    distil_dit(teacher, sampling, shown, work, settings, keep, device)


def _check_whole(files: CheckpointFiles) -> None:
    """Raise MagiError for what is no whole base model of magi-nano's sizes."""
    if files.config.sampling.cfg_number == 1:
        raise MagiError(f"the teacher is a distilled or fp8 model ({files.name}); give the base model")
    if files.dit is None or files.vae is None or files.t5 is None or files.special_tokens is None:
        raise MagiError(f"the teacher is not whole: {files.missing[0]}")
    if files.config.dit != NANO.dit:
        raise MagiError(
            f"the teacher {files.name} is no model of magi-nano's sizes; the clips that a student learns from are 64 pixels wide"
        )


def distil_dit(
    teacher: MagiDiT,
    sampling: Sampling,
    clips: ClipSet,
    folder: Path,
    settings: Distillation,
    keep: Keep,
    device: str = "cpu",
) -> None:
    """Teach a student to the end of the schedule, going on from the state in ``folder`` if there is one.

    teacher: a base model, sampling: its guidance. ``folder`` receives what ``train_dit`` writes.
    """
    teacher = teacher.to(device)
    teacher.attend = attend_products
    state = start_student(teacher, folder, settings, device)
    average = MagiDiT(cast(MagiDiT, state.model).config, attend=attend_products).requires_grad_(False)
    average.load_state_dict(state.ema, assign=True)  # the same memory: it follows the average by itself
    batches = settings.dit.batch
    layouts = layouts_for(sampling, int(clips.lengths.max()))
    threshold = sampling.distill_nearly_clean_chunk_threshold

    def draw(generator: torch.Generator) -> list[Shortcut]:
        turn = state.step * len(batches)
        counts = [settings.cycle[(turn + i) % len(settings.cycle)] for i in range(len(batches))]
        return [
            draw_shortcut(clips, layouts[name], count, num_steps, settings.dit.mix, threshold, generator)
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

    run_steps(state, folder, settings.dit, device, draw, errors, keep)


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
