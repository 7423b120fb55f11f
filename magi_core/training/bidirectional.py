"""The bidirectional variant of a magi-nano, to compare with: all chunks of a video share one noise level and read each other.

So most video models are made. No keys and values can be kept, since those of given chunks depend on what is still noise, and the first
second is ready when the last one is. The variant is trained for one question alone, that of ``evaluation.physics_worlds``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from magi_core.checkpoint.find import CheckpointFiles
from magi_core.checkpoint.load import load_dit
from magi_core.denoise.storage import fingerprint
from magi_core.model import MagiDiT
from magi_core.parts import Parts
from magi_core.run_lock import alone
from magi_core.training.dataset import Mix
from magi_core.training.dit import DiTSettings, train_dit
from magi_core.training.export import write_weights
from magi_core.training.objective import bidirectional_layout
from magi_core.training.origin import claim
from magi_core.training.shards import make_shards, open_clips
from magi_core.training.train import FURTHER, WORK, find_start

GIVEN, PREDICTED = 3, 5
"""Chunks of a sequence."""
WEIGHTS_FILE = "bidirectional.safetensors"
NAME = "bidirectional"
LAYOUT = bidirectional_layout(GIVEN, PREDICTED)
START = "start"
"""Of the file's metadata: the fingerprint of the model that it is a variant of."""


@dataclass(frozen=True)
class Bidirectional:
    """How a variant is trained."""

    world: str = "narrow"
    """Of the clips, a name of ``worlds.clips.WORLDS``."""
    clips: int = 3000
    """Of GIVEN + PREDICTED chunks each."""
    dit: DiTSettings = replace(
        FURTHER,
        steps=2000,
        batch=MappingProxyType({NAME: 8}),
        mix=Mix(prefix=0.0, scene=0.0, late_row=0.0),
        keep_steps=0,
    )


def train_bidirectional(start: str | Path, out: Path, settings: Bidirectional) -> None:
    """Train the variant of the model ``start`` in the folder ``out``, going on from what is there.

    Its transformer becomes ``out``/bidirectional.safetensors: no model folder, because no sampler but that of
    ``bidirectional_sampler`` fits it. States, clips, losses and the loss curve are in ``out``/training. Raises MagiError as ``train``
    does.
    """
    files = find_start(start, out)
    model = load_dit(files, dtype=torch.float32)
    made = out / WEIGHTS_FILE
    origin = {"command": "train --bidirectional", "world": settings.world, "start": fingerprint(model)}
    claim(made, out / WORK, origin)
    with alone(out / WORK):
        _train(files, model, made, out / WORK, settings)


def _train(files: CheckpointFiles, model: MagiDiT, made: Path, work: Path, settings: Bidirectional) -> None:
    parts = Parts(files)
    make_shards(work / "clips", parts.vae, settings.world, settings.clips, settings.dit.seed, GIVEN + PREDICTED)
    clips = open_clips([work / "clips"], parts)

    def keep(weights: Mapping[str, Tensor], step: int) -> None:
        stored = {name: value.to(torch.float16) for name, value in weights.items()}
        write_weights(stored, made, {START: fingerprint(model)})

    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_dit(files.config.dit, clips, work, settings.dit, keep, device, model.state_dict(), {NAME: LAYOUT})
