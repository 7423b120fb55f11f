"""Rotary position over time, height and width with learned bands (spec 3.3, 3.4).

Time counts latent frames of the whole video. Height and width are centred and stretched so that any picture spans what a
square of 256 tokens would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

REFERENCE_TOKENS = 256


class Rotation(NamedTuple):
    """Sine and cosine of every token's angles, each [tokens, 3 * bands], float32."""

    sin: Tensor
    cos: Tensor


class Rope(nn.Module):
    """The learned frequencies; a call makes the angles of a grid of tokens."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.bands = nn.Parameter(10000.0 ** (-torch.arange(bands, dtype=torch.float32) / bands))

    def forward(self, first_frames: Sequence[int], frames: int, height: int, width: int) -> Rotation:
        """Angles of chunks of ``frames`` frames that start at ``first_frames``, ``height`` x ``width`` tokens a frame."""
        device = self.bands.device
        time = torch.cat([torch.arange(first, first + frames, device=device) for first in first_frames]).float()
        stretch = (height * width / REFERENCE_TOKENS) ** 0.5
        y = _centred(height, height / stretch, device)
        x = _centred(width, width / stretch, device)
        position = torch.stack(torch.meshgrid(time, y, x, indexing="ij"), dim=-1).flatten(0, 2)  # [tokens, 3]
        angle = (position[:, :, None] * self.bands).flatten(1)
        return Rotation(angle.sin(), angle.cos())


def _centred(length: int, span: float, device: torch.device) -> Tensor:
    """``length`` positions, evenly spaced, centred on 0, (span - 1) from first to last."""
    steps = torch.arange(length, dtype=torch.float32, device=device)
    return (steps - (length - 1) / 2) / (length - 1) * (span - 1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the first 2 * 3 * bands values of each head; x [..., tokens, heads, d] float32 (non-interleaved halves)."""
    sin, cos = rotation.sin[:, None], rotation.cos[:, None]
    half = sin.shape[-1]
    a, b, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)
