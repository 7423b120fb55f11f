"""Which kernels do the work on single tokens between a layer's products: chosen once for a device, the same values everywhere.

On a CUDA device of compute capability 8.0 where Triton is installed each function is one kernel of ``fused_triton``, those that make float8
where the device has such units (8.9). Anywhere else, and where gradients are wanted, they are the plain ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from magi_core.kernels import fused_plain as plain
from magi_core.kernels.fused_plain import Affine, Quantised
from magi_core.kernels.names import triton_missing

UNITS = (8, 9)
"""The compute capability from which on there is float8."""


@dataclass(frozen=True)
class LayerKernels:
    """The functions of ``fused_plain``, as a device runs them."""

    add_branch: Callable[[Tensor, Tensor, Tensor, Affine], Tensor] = plain.add_branch
    place: Callable[[Tensor, Affine, Tensor, Tensor, int], Tensor] = plain.place
    norm_heads: Callable[[Tensor, Affine], Tensor] = plain.norm_heads
    quantise: Callable[[Tensor, Tensor | None], Quantised] = plain.quantise
    quantise_normed: Callable[[Tensor, Affine, Sequence[Tensor | None]], list[Quantised]] = plain.quantise_normed
    quantise_activated: Callable[[Tensor, bool, Tensor | None], Quantised] = plain.quantise_activated


PLAIN = LayerKernels()


def layer_kernels(device: torch.device) -> LayerKernels:
    """What to use for tensors on ``device`` now."""
    return PLAIN if torch.is_grad_enabled() else _chosen(device)


@cache
def _chosen(device: torch.device) -> LayerKernels:
    if device.type != "cuda" or triton_missing(device):
        return PLAIN
    return fused(torch.cuda.get_device_capability(device) >= UNITS)


def fused(float8: bool) -> LayerKernels:
    """The Triton kernels; needs the package."""
    from magi_core.kernels import fused_triton

    kernels = replace(
        PLAIN, add_branch=fused_triton.add_branch, place=fused_triton.place, norm_heads=fused_triton.norm_heads
    )
    if not float8:
        return kernels
    return replace(
        kernels,
        quantise=fused_triton.quantise,
        quantise_normed=fused_triton.quantise_normed,
        quantise_activated=fused_triton.quantise_activated,
    )
