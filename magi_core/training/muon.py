"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum whose matrices are made orthogonal, for the weights of layers.

``torch.optim.Muon`` does the same in bfloat16 whatever the device; on a CPU without instructions for that a step of magi-nano's takes it
6 s. This one works in float32 there, on matrices of one shape together. Its state has the same fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from magi_core.training.precision import is_fast_in_bfloat16

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration: singular values come to between 0.7 and 1.2 in five rounds."""
ROUNDS = 5
SMALLEST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """For matrices alone; ``params`` are those, or groups of them, as every optimiser of torch takes them."""

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient: Nesterov momentum, made orthogonal, times lr * sqrt(max(1, rows / columns))."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in by_shape.items():
                updates = orthogonal(torch.stack([self._momentum(matrix) for matrix in matrices]))
                rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None  # noqa: S101 - for the type checker
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [n, rows, columns] with the same singular vectors and singular values of about 1, in the dtype that the device is fast in."""
    dtype = torch.bfloat16 if is_fast_in_bfloat16(matrices.device) else torch.float32
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
