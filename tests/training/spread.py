"""What the processes of ``torchrun`` do in test_finetune.py: a few steps of a tiny model, spread in one way, then in the other."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from magi_core.config import Sampling
from magi_core.model import MagiDiT
from magi_core.presets import PRESETS
from magi_core.training.finetune import FinetuneSettings, RecomputedLayers, finetune
from magi_core.training.layouts import layouts_for
from magi_core.training.lora import LoraSettings, Matrices
from magi_core.training.ranks import Ranks, launched
from tests.training.test_objective import random_clips, tiny_model

SETTINGS = FinetuneSettings(steps=4, passes=4, rate=1e-3, warmup_steps=1, decay_share=0.01, autocast=False)
NANO = PRESETS["nano"].sampling


def learning_model(*, recompute: bool = False) -> MagiDiT:
    model = tiny_model()
    if recompute:
        model.videodit_blocks.layers = RecomputedLayers(model.videodit_blocks.get_submodule("layers").children())
    return model.train()


def run(
    folder: Path,
    settings: FinetuneSettings,
    ranks: Ranks,
    *,
    sampling: Sampling = NANO,
    recompute: bool = False,
    lora: bool = False,
) -> None:
    """Train in ``folder``, all of a model or a LoRA; the averaged weights are written to ``folder``/kept.safetensors."""
    model = learning_model(recompute=recompute)
    matrices = Matrices(model.requires_grad_(False), LoraSettings(rank=4)) if lora else None

    def keep(weights: dict[str, torch.Tensor], step: int) -> None:
        save_file(weights, folder / "kept.safetensors", {"step": str(step)})

    finetune(model, random_clips(), layouts_for(sampling, 3), folder, settings, ranks, keep, matrices)


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with launched(torch.device("cpu")) as ranks:
        assert ranks.count == 2
        for name, settings in (
            ("ddp", SETTINGS),
            ("fsdp", replace(SETTINGS, steps=2, shard=True)),
            ("fsdp", replace(SETTINGS, shard=True)),  # goes on
            ("lora ddp", SETTINGS),
            ("lora fsdp", replace(SETTINGS, steps=2, shard=True)),
            ("lora fsdp", replace(SETTINGS, shard=True)),
        ):
            run(folder / name, settings, ranks, recompute="fsdp" in name, lora="lora" in name)
    if ranks.first:
        (folder / "done").touch()


if __name__ == "__main__":
    main()
