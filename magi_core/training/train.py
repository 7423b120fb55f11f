"""``magi train``: magi-nano from nothing, in five stages: text encoder, VAE, clips as latents, DiT, export; going on from a model, its rollouts before the clips.

A stage whose result is there already is skipped and an unfinished one goes on, so the same call starts, resumes and finishes a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from magi_core.checkpoint.find import CheckpointFiles, find_checkpoint
from magi_core.checkpoint.load import load_dit
from magi_core.config import Sampling
from magi_core.denoise.storage import fingerprint
from magi_core.errors import MagiError
from magi_core.model import MagiDiT
from magi_core.parts import Parts
from magi_core.presets import PRESETS
from magi_core.run_lock import alone
from magi_core.training.dataset import Mix
from magi_core.training.decoys import make_decoys
from magi_core.training.dit import DiTSettings, train_dit
from magi_core.training.export import bring_parts, check_other_folder, write_dit
from magi_core.training.objective import ROLLOUTS
from magi_core.training.origin import claim
from magi_core.training.rollouts import check_anchor, make_rollouts
from magi_core.training.shards import CHUNKS, make_shards, open_clips
from magi_core.training.text import TextTraining, train_text
from magi_core.training.vae import VAETraining, train_vae

NANO = replace(PRESETS["nano"], load=".", vae_pretrained="vae", t5_pretrained="t5")
WORK = "training"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What ``train`` makes; the defaults are those of the shipped magi-nano."""

    world: str = "narrow"
    """A name of ``worlds.clips.WORLDS``."""
    clips: int = 12_000
    """Of the training set."""
    chunks: int = CHUNKS
    """Of a clip."""
    seed: int = 0
    sampling: Sampling = NANO.sampling
    """How the model's chunks are to be denoised, where it does not go on from another one."""
    text: TextTraining = TextTraining()
    vae: VAETraining = VAETraining()
    dit: DiTSettings = DiTSettings(steps=4350)
    start: str | Path | None = None
    """A model of the same sizes to go on from: its text encoder, VAE and special tokens as they are, its transformer to begin with."""
    rollouts: int = 0
    """Long videos that the model gone on from makes first; training then shows how their seconds, and those of ``decoys``, should have gone on."""
    blend: float = 1.0
    """So much of the weights that are handed out is what the run learnt, the rest what it began with: a model that goes on with something new
    keeps most of what it knew in their mean (Wortsman et al. 2022, arXiv 2109.01903)."""

    def __post_init__(self) -> None:
        if not 0 < self.blend <= 1:
            raise MagiError(
                f"blend is {self.blend}; it must be above 0, the model gone on from alone, and at most 1, the run's weights alone"
            )
        if self.blend < 1 and self.start is None:
            raise MagiError("a blend is with the weights of a model that is gone on from; give start, or leave it at 1")
        if self.rollouts < 0:
            raise MagiError(f"rollouts is {self.rollouts}; it must be 0, for none, or more")
        if self.rollouts and self.start is None:
            raise MagiError("rollouts are videos of a model that is gone on from; give start, or none")


RECIPES: Mapping[str, Training] = {
    "narrow": Training(),
    "full": Training(
        world="full",
        clips=16_000,
        chunks=7,
        sampling=replace(NANO.sampling, text_scales=(3.0, 3.0, 3.0, 3.0, 1.0), anchor=True),
        text=TextTraining(steps=600),
        vae=VAETraining(steps=2000, full_world=0.9),
        dit=DiTSettings(
            steps=18_000,
            batch={
                "anchored stream": 5,
                "first": 24,
                "next": 8,
                "anchored far": 2,
                "start": 2,
                "behind": 3,
                "stream": 2,
                "far": 2,
                "pair": 2,
            },
            mix=Mix(own_history=0.5),
        ),
    ),
}
"""How a model of each world is made: magi-nano, magi-nano-full."""
FURTHER = DiTSettings(steps=3000, seed=1, muon_lr=0.012, adamw_lr=9e-4, decay_share=0.8)
"""For a transformer that has learnt already, as that of ``Training.start``; another seed, so that it is not shown the same draws again."""

BEHIND_ROLLOUTS = replace(
    FURTHER,
    muon_lr=0.009,
    adamw_lr=7e-4,
    batch={
        "first": 40,
        "anchored stream": 3,
        "next": 6,
        **dict.fromkeys(ROLLOUTS, 2),
        "start": 4,
        "anchored far": 2,
        "behind": 2,
        "stream": 1,
        "far": 1,
        "pair": 2,
    },
    mix=Mix(own_history=0.5),
)
"""The same with the rollouts of ``Training.rollouts``, for clips as long as those of magi-nano-full."""


DECOYS = 6
"""For every rollout, which is about as many sequences as it gives itself."""
ROLLOUTS_BLEND = 0.75
"""``Training.blend`` behind rollouts, whose targets are few and alike."""


def gone_on(recipe: Training, start: str | Path, rollouts: int = 0) -> Training:
    """A recipe for a model that goes on from ``start``, with so many of that one's own long videos."""
    if not rollouts:
        return replace(recipe, start=start, dit=FURTHER)
    chunks = max(recipe.chunks, RECIPES["full"].chunks)
    return replace(recipe, start=start, dit=BEHIND_ROLLOUTS, rollouts=rollouts, chunks=chunks, blend=ROLLOUTS_BLEND)


def train(out: Path, settings: Training = Training(), watch: Callable[[int], None] | None = None) -> None:
    """Make a whole magi-nano in the folder ``out``, going on from what is there.

    ``out`` becomes a model folder (config.json, inference_weight/, vae/, t5/, special_tokens.npz), and is one whenever the transformer
    is handed out on the way (``DiTSettings.keep_steps``); ``watch`` is then called with the step. States, clips, losses and the loss
    curve are in ``out``/training. Raises MagiError where something there is damaged, or of another run.
    """
    start = None if settings.start is None else find_start(settings.start, out)
    initial = None if start is None else load_dit(start, dtype=torch.float32)
    begun_with = "nothing" if initial is None else fingerprint(initial)
    if start is not None and settings.rollouts:
        check_anchor(start)
    command = f"train with {settings.rollouts} rollouts" if settings.rollouts else "train"
    claim(out, out / WORK, {"command": command, "world": settings.world, "start": begun_with})
    with alone(out / WORK):
        _train(out, settings, start, initial, watch)


def _train(
    out: Path,
    settings: Training,
    start: CheckpointFiles | None,
    initial: MagiDiT | None,
    watch: Callable[[int], None] | None,
) -> None:
    work = out / WORK
    config = replace(NANO, sampling=settings.sampling if start is None else start.config.sampling)
    if start is not None:
        bring_parts(start, out)
    if not (out / "t5" / "config.json").is_file() or not (out / "special_tokens.npz").is_file():
        log.info("text: accuracy %s", train_text(out, settings.text))
    if not (out / "vae" / "config.json").is_file():
        work.mkdir(parents=True, exist_ok=True)
        train_vae(out / "vae", work, settings.vae)
    parts = Parts(CheckpointFiles("nano", config, None, out / "vae", out / "t5", out / "special_tokens.npz"))
    rollouts = None
    if start is not None and settings.rollouts:
        drifted, decoys, seed = work / "rollouts", work / "decoys", settings.dit.seed
        make_rollouts(drifted, Parts(start), settings.world, settings.rollouts, seed)
        make_decoys(decoys, parts.vae, settings.world, DECOYS * settings.rollouts, seed)
        rollouts = open_clips([drifted, decoys], parts)
    make_shards(work / "clips", parts.vae, settings.world, settings.clips, settings.seed, settings.chunks)
    clips = open_clips([work / "clips"], parts)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    weights = None if initial is None else initial.state_dict()

    def keep(learnt: Mapping[str, Tensor], step: int) -> None:
        mixed = learnt if weights is None else blended(weights, learnt, settings.blend)
        write_dit({name: value.to(torch.float16) for name, value in mixed.items()}, config, out)
        if watch is not None:
            watch(step)

    train_dit(NANO.dit, clips, work, settings.dit, keep, device, weights, rollouts=rollouts)


def blended(begun: Mapping[str, Tensor], learnt: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights of which ``share`` 0..1 is ``learnt`` and the rest ``begun``; both by the same names."""
    return {name: torch.lerp(begun[name].to(value), value, share) for name, value in learnt.items()}


def find_start(source: str | Path, out: Path) -> CheckpointFiles:
    """The model that training goes on from. Raises MagiError for one of other sizes, one that is not whole, and for ``out`` itself."""
    files = find_checkpoint(source)
    check_other_folder(files, out)
    if files.config.dit != NANO.dit:
        raise MagiError(
            f"{source} is a {files.name} model; training goes on from one of magi-nano's sizes that is not distilled"
        )
    if files.special_tokens is None:
        raise MagiError(f"{files.name} is not whole: its special_tokens.npz is missing")
    return files
