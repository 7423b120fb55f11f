"""What a transformer layer does to every token between its products, as plain torch: the definition, and what every device can run.

Shapes: x [chunks, tokens, h]. Float8 values come with the scale that they are to be multiplied by, one for every row, or None where the
layer that they were made for has one of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
LEAST_SCALE = 1e-12
"""Rows of zeros have a scale too."""

Quantised = tuple[Tensor, Tensor | None]
"""Float8 values, and float32 scales [..., 1] of their rows."""


class Affine(NamedTuple):
    """A LayerNorm over the last dimension, in the dtype of its weight."""

    weight: Tensor
    """The gain, or the gain - 1 with ``one_plus``."""
    bias: Tensor
    eps: float
    one_plus: bool


def normalise(x: Tensor, norm: Affine) -> Tensor:
    """LayerNorm over the last dimension."""
    gain = 1 + norm.weight if norm.one_plus else norm.weight
    return F.layer_norm(x.to(norm.weight.dtype), gain.shape, gain, norm.bias, norm.eps)


def add_branch(x: Tensor, gate: Tensor, branch: Tensor, norm: Affine) -> Tensor:
    """x + norm(gate * branch): float32, rounded once. gate [chunks, 1, h]; the norm is a float32 one (spec 3.9)."""
    return normalise(gate.float() * branch, norm).add_(x).to(x.dtype)


def place(x: Tensor, norm: Affine, stay: Tensor, turn: Tensor, bands: int) -> Tensor:
    """Norm every head, then turn it to its place, in float32; x [chunks, tokens, heads, d], rounded once.

    stay, turn [chunks of an item, tokens, 1, d]: see ``rotate``.
    """
    items = torch.unflatten(normalise(x, norm).float(), 0, (-1, len(stay)))
    return rotate(items, stay, turn, bands).flatten(0, 1).to(x.dtype)


def norm_heads(x: Tensor, norm: Affine) -> Tensor:
    """Norm every head where it is; x [chunks, tokens, heads, d], rounded once."""
    return normalise(x, norm).to(x.dtype)


def rotate(x: Tensor, stay: Tensor, turn: Tensor, bands: int) -> Tensor:
    """x * stay + partner(x) * turn; x [..., d] float32, of which the first 2 * 3 * bands values have partners (non-interleaved halves)."""
    half = 3 * bands
    a, b, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return (x * stay).add_(torch.cat([b, a, rest], dim=-1) * turn)


def activate(wide: Tensor, gated: bool) -> Tensor:
    """GELU, or SiLU(first half) * second half."""
    if not gated:
        return F.gelu(wide)
    gate, value = wide.chunk(2, dim=-1)
    return F.silu(gate) * value


def quantise(x: Tensor, divisor: Tensor | None) -> Quantised:
    """x [..., K] in float8: divided by a vector, or number, and rounded through bfloat16 as the calibration did (spec 5); or, without one,
    as ``quantise_rows``.
    """
    if divisor is None:
        return quantise_rows(x)
    return (x / divisor).clamp(-FP8_MAX, FP8_MAX).to(torch.bfloat16).to(FP8), None


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] -> float8 of the same shape and float32 scales [..., 1]: x is about their product; each row's peak is at 448."""
    peak = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).float()
    scale = (peak / FP8_MAX).clamp(min=LEAST_SCALE)
    return (x / scale).to(FP8), scale


def quantise_normed(x: Tensor, norm: Affine, divisors: Sequence[Tensor | None]) -> list[Quantised]:
    """``normalise(x)``, quantised by every divisor."""
    normed = normalise(x, norm)
    return [quantise(normed, divisor) for divisor in divisors]


def quantise_activated(wide: Tensor, gated: bool, divisor: Tensor | None) -> Quantised:
    """``activate(wide)``, quantised."""
    return quantise(activate(wide, gated), divisor)
