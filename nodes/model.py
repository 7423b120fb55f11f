"""What a MODEL of ours holds: the transformer, and what belongs to its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Literal

import torch
from torch import nn

from magi_core.checkpoint.find import CheckpointFiles
from magi_core.config import MagiConfig, Sampling
from magi_core.cost.memory import Use, plan_memory
from magi_core.model import MagiDiT
from magi_core.text.special_tokens import SpecialTokens

from .workers import Workers

Weights = Literal["auto", "resident", "streamed"]
"""Who cares for the layers' weights: ComfyUI, which loads as many as fit; nobody, they are on the device; we, two layers at a time."""


class MagiModel(nn.Module):
    """The module that ComfyUI's ModelPatcher moves. ``fp8``: it was quantised on load. ``attention``: what its kernel was chosen by.
    ``asked``: for the weights, what ``weights`` came of.

    The transformer has the name under which ComfyUI's own LoRA loaders look for weights, and ``model_config`` is what they ask besides.
    """

    model_config = SimpleNamespace(unet_config={})
    workers: Workers | None = None
    """Who runs it; None: this process."""

    def __init__(
        self,
        dit: MagiDiT,
        files: CheckpointFiles,
        weights: Weights = "resident",
        *,
        asked: Weights = "auto",
        fp8: bool = False,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self._hold(dit)
        self.files = files
        self.weights, self.asked, self.fp8, self.attention = weights, asked, fp8, attention
        self.device: torch.device | None = None  # where ComfyUI notes it

    def _hold(self, dit: MagiDiT) -> None:
        self.diffusion_model = dit

    @property
    def dit(self) -> MagiDiT:
        return self.diffusion_model

    @property
    def config(self) -> MagiConfig:
        """The checkpoint's, computing in what was chosen."""
        return replace(self.files.config, dit=self.dit.config)

    def special_tokens(self) -> SpecialTokens | None:
        """The checkpoint's special tokens, if it has some."""
        path = self.files.special_tokens
        return SpecialTokens.load(path, self.config.dit.caption_channels) if path else None

    def use(self, height: int, width: int, sampling: Sampling, *, gpu: bool) -> Use:
        """A video to be made with it, for the memory plan. What ComfyUI loads in part needs no more than what is streamed."""
        place: Literal["resident", "streamed"] = "resident" if self.weights == "resident" or not gpu else "streamed"
        return Use(self.config, height, width, sampling, place, self.fp8, gpu=gpu)


class SharedModel(MagiModel):
    """A model run by workers, which have weights of their own: ComfyUI sees none that it could move."""

    def __init__(self, model: MagiModel, workers: Workers) -> None:
        super().__init__(model.dit, model.files, asked=model.asked, fp8=model.fp8, attention=model.attention)
        self.workers = workers

    def _hold(self, dit: MagiDiT) -> None:
        object.__setattr__(self, "diffusion_model", dit)  # past torch, for which it would be a part of this module


def placed(weights: Weights, use: Use, device_bytes: int) -> Weights:
    """What "auto" comes to on a device of that memory: layers in 8 bits are none that ComfyUI can move one by one, and layers that do
    not fit are brought sooner by us, who know which one comes next.
    """
    if weights != "auto":
        return weights
    if use.gpu and not plan_memory(use).fits(device_bytes):
        return "streamed"
    return "resident" if use.fp8 or use.config.dit.fp8_quant else "auto"
