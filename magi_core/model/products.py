"""A norm or an activation and the linear layers behind it, in whatever precision they have: 8 bit ones share the quantising where they can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from magi_core.kernels.fused import layer_kernels
from magi_core.kernels.fused_plain import activate
from magi_core.model.fp8 import EightBit
from magi_core.model.norms import Norm


def normed_products(x: Tensor, norm: Norm, layers: Sequence[nn.Module], *, shared: bool) -> list[Tensor]:
    """``layer(norm(x))`` of every layer. All are 8 bit ones or none is; shared: the former quantise their input alike."""
    if not all(isinstance(layer, EightBit) and not layer.heard for layer in layers):
        normed = norm(x)
        return [layer(normed) for layer in layers]
    eight_bit = [layer for layer in layers if isinstance(layer, EightBit)]
    divisors = [layer.divisor for layer in (eight_bit[:1] if shared else eight_bit)]
    made = layer_kernels(x.device).quantise_normed(x, norm.affine, divisors)
    return [
        layer.product(*given) for layer, given in zip(eight_bit, made * len(layers) if shared else made, strict=True)
    ]


def activated_product(wide: Tensor, gated: bool, layer: nn.Module) -> Tensor:
    """``layer(activate(wide, gated))``."""
    if isinstance(layer, EightBit) and not layer.heard:
        return layer.product(*layer_kernels(wide.device).quantise_activated(wide, gated, layer.divisor))
    wide = activate(wide, gated)  # the values before it are let go of: these are the largest of a layer
    out: Tensor = layer(wide)
    return out


class SameInput:
    """Whether layers quantise their input alike: looked up once, since comparing on a GPU waits for it, and again for other weights."""

    def __init__(self, owner: nn.Module) -> None:
        self._known: bool | None = None
        owner.register_load_state_dict_post_hook(self._forget)  # type: ignore[no-untyped-call]

    def __call__(self, layers: Sequence[nn.Module]) -> bool:
        if self._known is None:
            divisors = [layer.divisor for layer in layers if isinstance(layer, EightBit)]
            if any(divisor is not None and divisor.is_meta for divisor in divisors):
                return False
            first = divisors[0] if divisors else None
            self._known = all(
                first is None if divisor is None else first is not None and torch.equal(first, divisor)
                for divisor in divisors
            )
        return self._known

    def _forget(self, *_: Any) -> None:
        self._known = None
