"""Linear layers without bias: plain, and with the public fp8 weights (spec 5).

The fp8 layers quantise their input as the released model was calibrated to, multiply the dequantised values in float32 and
scale the result; they store weights in 8 bits but need no fp8 hardware.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0

Quant = Literal["none", "per_tensor", "per_channel"]


def make_linear(inputs: int, outputs: int, dtype: torch.dtype, quant: Quant = "none") -> nn.Module:
    """A linear layer [..., inputs] -> [..., outputs] that emits ``dtype``."""
    if quant == "none":
        return nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    return Fp8Linear(inputs, outputs, dtype, per_channel=quant == "per_channel")


class Fp8Linear(nn.Module):
    """A linear layer with float8_e4m3fn weights.

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

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight[0].float()
        y = F.linear(self.quantise(x).float(), weight)
        return (y * self.input_scale[0] * self.weight_scale).to(self.dtype)

    def quantise(self, x: Tensor) -> Tensor:
        """The input in float8, rounded through bfloat16 as the calibration did."""
        scale = self.input_scale if self.smooth_scale is None else self.smooth_scale[0]
        return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.bfloat16).to(FP8)


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
