"""Linear layers with weights in 8 bits: those of the public fp8 checkpoints (spec 5), and those quantised on load.

Both quantise their input too and multiply fp8 by fp8 with float32 sums: on GPUs with fp8 units by ``torch._scaled_mm``, elsewhere the
same numbers in float32. Weights take half the memory of bfloat16 either way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magi_core.kernels.fused import layer_kernels
from magi_core.kernels.fused_plain import FP8

UNIT = 16
"""Fp8 units take matrices whose sides are multiples of this."""


class EightBit(nn.Module, ABC):
    """A linear layer without bias whose weight and input are float8."""

    heard = 0
    """How many read its input as it is, besides itself, which takes it in 8 bits: it is called with it then."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(*layer_kernels(x.device).quantise(x, self.divisor))

    @property
    @abstractmethod
    def divisor(self) -> Tensor | None:
        """What the input is divided by before it becomes float8; None: every row by what brings its peak to the largest float8."""

    @abstractmethod
    def product(self, values: Tensor, scale: Tensor | None) -> Tensor:
        """The output for an input that was quantised by ``divisor``; scale: of its rows."""


class Fp8Linear(EightBit):
    """A linear layer of a public fp8 checkpoint.

    per_tensor: the input is divided by the vector ``input_scale``, of which element 0 alone rescales the output (spec 14.13).
    per_channel: the input is divided by ``smooth_scale``, which is folded into the weight; ``input_scale`` is one number.
    """

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype, *, per_channel: bool) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = _frozen(torch.zeros(1, outputs, inputs, dtype=FP8))
        self.weight_scale = _frozen(torch.ones(1))
        self.input_scale = _frozen(torch.ones(1 if per_channel else inputs))
        self.smooth_scale = _frozen(torch.ones(1, inputs)) if per_channel else None

    @property
    def divisor(self) -> Tensor | None:
        return self.input_scale if self.smooth_scale is None else self.smooth_scale[0]

    def product(self, values: Tensor, scale: Tensor | None) -> Tensor:
        return scaled_product(values, self.weight[0], self.input_scale[:1], self.weight_scale, self.dtype)


class RowFp8Linear(EightBit):
    """A linear layer whose weight was quantised on load: a scale for every output channel, and for every token as it comes.

    Lossy: e4m3 keeps 3 bits behind the leading one, so a product of two numbers is off by up to an eighth and the output, where
    errors average out, by about 4 % of its root mean square.
    """

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = _frozen(torch.zeros(outputs, inputs, dtype=FP8))
        self.weight_scale = _frozen(torch.ones(1, outputs))

    @property
    def divisor(self) -> Tensor | None:
        return None

    def product(self, values: Tensor, scale: Tensor | None) -> Tensor:
        if scale is None:
            raise ValueError("the input's rows need their scales")
        return scaled_product(values, self.weight, scale, self.weight_scale, self.dtype)


def scaled_product(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(x * x_scale) @ (weight * weight_scale.T).T as ``dtype`` [..., N]: x [..., K] and weight [N, K] are float8.

    The scales are float32: one number each, or [..., 1] for every row of x and [1, N] for every row of the weight.
    """
    by_row = weight_scale.numel() > 1
    if not any(side % UNIT for side in weight.shape) and has_fp8_units(x.device, by_row, dtype):
        return fast_scaled_product(x, weight, x_scale, weight_scale, dtype)
    return (F.linear(x.float(), weight.float()) * x_scale * weight_scale).to(dtype)


def fast_scaled_product(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``scaled_product`` by fp8 units."""
    rows = x_scale.flatten(0, -2) if x_scale.ndim > 1 else x_scale
    out = torch._scaled_mm(x.flatten(0, -2), weight.t(), rows, weight_scale, out_dtype=dtype)
    return torch.unflatten(out, 0, x.shape[:-1])


@cache
def has_fp8_units(device: torch.device, by_row: bool, dtype: torch.dtype) -> bool:
    """Whether the device multiplies fp8 into ``dtype``; tried once. Not on the CPU, where it saves nothing."""
    if device.type == "cpu":
        return False
    ones = torch.ones(UNIT, UNIT, device=device).to(FP8)
    scales = (torch.ones(UNIT, 1, device=device), torch.ones(1, UNIT, device=device)) if by_row else None
    one = torch.ones(1, device=device)
    try:
        torch._scaled_mm(ones, ones.t(), *(scales or (one, one)), out_dtype=dtype)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return False
    return True


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
