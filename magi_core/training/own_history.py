"""History as the model itself would leave it: clean chunks of a training sequence, taken back into noise and denoised by the model.

Training shows true seconds before the one that is to be made; a sampler shows what the model made, whose small mistakes (a radius half
a pixel too large, a corner too round) the next second copies and adds its own to. Where some of the clean chunks are the model's own
and the target is still the true clip, it learns to mend them instead.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from magi_core.model import MagiDiT
from magi_core.text.assembly import NULL_LENGTH
from magi_core.training.objective import LAYOUTS, Layout, Noised, Sample, velocities
from magi_core.training.precision import autocast

TIMES = ((0.25, 0.6), (0.6, 0.9))
"""Between which times a clean chunk is taken back, one after the other: what it shows stays, its details are the model's."""
ANCHORED_TIMES = ((0.12, 0.6), (0.5, 0.9))
"""The same behind an anchor: now and then what it shows is lost as well, and is to be taken from the anchor."""


@dataclass(frozen=True)
class TakenBack:
    """Which ``sequences`` [M] of a batch get a history of the model's own, and the times t [2, M*K] and noise [2, M*K, C, F, H, W] by which
    their K chunks of history are taken back."""

    sequences: Tensor
    t: Tensor
    noise: Tensor

    def to(self, device: torch.device | str) -> TakenBack:
        """The same on another device."""
        return TakenBack(*(getattr(self, field.name).to(device) for field in fields(self)))


def draw_taken_back(layout: Layout, sample: Sample, share: float, generator: torch.Generator) -> TakenBack | None:
    """About ``share`` of the sequences, None where there are none, or the layout has no history, or one of the model's own already."""
    if not share or not layout.history or layout.own:
        return None
    count, channels, frames, height, width = sample.latents.shape
    sequences = (torch.rand(count, generator=generator) < share).nonzero().squeeze(1)
    if not len(sequences):
        return None
    chunks = len(sequences) * len(layout.history)
    low, high = torch.tensor(ANCHORED_TIMES if layout.anchored else TIMES).unsqueeze(2).unbind(1)
    noise = torch.randn(len(TIMES), chunks, channels, frames // len(layout.clean), height, width, generator=generator)
    return TakenBack(sequences, low + (high - low) * torch.rand(len(TIMES), chunks, generator=generator), noise)


def with_own_history(model: MagiDiT, layout: Layout, sample: Sample, noised: Noised, taken_back: TakenBack) -> Noised:
    """``noised`` with the history of the sequences that ``taken_back`` names as the model makes them. Without gradient."""
    count, channels, frames, height, width = sample.latents.shape
    chunked = count, channels, len(layout.clean), frames // len(layout.clean), height, width
    history = torch.tensor(layout.history, device=sample.latents.device)
    which = (taken_back.sequences[:, None], slice(None), history)
    true = sample.latents.reshape(chunked)[which]  # [M, K, C, F, H, W]
    made = denoised(model, true.flatten(0, 1), taken_back).view_as(true)
    x = noised.x.reshape(chunked).clone()
    x[which] += made - true  # the noise that a clean chunk carries stays
    return replace(noised, x=x.flatten(2, 3))


def denoised(model: MagiDiT, latents: Tensor, taken_back: TakenBack) -> Tensor:
    """Chunks [M*K, C, F, H, W] after having been taken back into noise and denoised in one step, at every time, alone and without words."""
    chunks = len(latents)
    nothing = latents.new_zeros(chunks, NULL_LENGTH, model.config.caption_channels)
    yes = torch.ones(chunks, 1, dtype=torch.bool, device=latents.device)
    unheard = Sample(latents, torch.zeros_like(yes, dtype=torch.long), nothing, nothing[..., 0] > 0, yes, yes)
    # An older torch keeps in its cache, for the pass that needs a gradient, weights that were cast without one.
    with torch.no_grad(), autocast(latents.device, cache=False):
        for t, noise in zip(taken_back.t, taken_back.noise, strict=True):
            share = t.view(-1, 1, 1, 1, 1)
            x = noise + share * (latents - noise)
            latents = x + (1 - share) * velocities(model, LAYOUTS["first"], unheard, x, t[:, None])
    return latents
