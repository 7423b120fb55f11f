"""A model with adapters: W x + sum of strength * scale * up (down x).

Two ways, equal up to rounding. ``merge`` adds the product of the matrices to the weights, wherever they are kept: costs nothing when the
model runs. ``add`` leaves the weights as they are and adds the product to what each layer gives: a few per cent of the work, but the only
way for weights in 8 bits, where an addition would be lost in rounding, and it is undone at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from magi_core.checkpoint.layout import LAYERS
from magi_core.config import DiTConfig
from magi_core.lora.choice import Lora
from magi_core.lora.files import Adapter, LowRank, read_adapter
from magi_core.memory.streaming import StreamedLayers
from magi_core.model import MagiDiT
from magi_core.model.fp8 import EightBit

Weighted = tuple[Adapter, float]
"""An adapter and its strength."""


def read(loras: Iterable[Lora], config: DiTConfig) -> list[Weighted]:
    """The adapters that are chosen; raises MagiError where a file is missing, damaged, not the pinned one, or of another model."""
    adapters = []
    for lora in loras:
        lora.check()
        adapters.append((read_adapter(lora.path, config), lora.strength))
    return adapters


def use(model: MagiDiT, adapters: Sequence[Weighted]) -> None:
    """Let a freshly loaded model use adapters for good: merged, but added where weights have 8 bits."""
    merge(model, adapters)
    add(model, adapters, only=lambda layer: isinstance(layer, EightBit))


def merge(model: MagiDiT, adapters: Iterable[Weighted], originals: MutableMapping[str, Tensor] | None = None) -> None:
    """Add adapters to the weights, in float32 and rounded once to the weight's dtype; layers in 8 bits are passed over.

    originals: gets a copy, in main memory, of every weight before its change, with which ``restore`` undoes it to the bit.
    """
    for name, parts in _by_layer(model, adapters).items():
        if isinstance(find_layer(model, name), EightBit):
            continue
        weight = _weight(model, name)
        if originals is not None and name not in originals:
            originals[name] = weight.to("cpu", copy=True)
        changed = weight.float()
        for part, strength in parts:
            up, down = (matrix.to(weight.device).float() for matrix in (part.up, part.down))
            changed = torch.addmm(changed, up, down, alpha=strength * part.scale)
        weight.copy_(changed)


def restore(model: MagiDiT, originals: MutableMapping[str, Tensor]) -> None:
    """Put the weights back that ``merge`` changed."""
    for name, original in originals.items():
        _weight(model, name).copy_(original)


def add(
    model: MagiDiT, adapters: Iterable[Weighted], only: Callable[[nn.Module], bool] = lambda layer: True
) -> Callable[[], None]:
    """Let layers give what adapters add besides, until the function that is returned is called. only: which layers."""
    layers = [(find_layer(model, name), parts) for name, parts in _by_layer(model, adapters).items()]
    undo = [hang(layer, Product(parts)) for layer, parts in layers if only(layer)]

    def remove() -> None:
        for each in undo:
            each()

    return remove


def hang(layer: nn.Module, hook: Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]) -> Callable[[], None]:
    """Let ``hook`` change what a layer gives, knowing its input; what is returned undoes it."""
    handle: RemovableHandle = layer.register_forward_hook(hook)
    if isinstance(layer, EightBit):
        layer.heard += 1

    def undo() -> None:
        handle.remove()
        if isinstance(layer, EightBit):
            layer.heard -= 1

    return undo


class Product:
    """What adapters add to one layer: their matrices side by side, so that several cost one product more."""

    def __init__(self, parts: Sequence[tuple[LowRank, float]]) -> None:
        self.down = torch.cat([part.down.float() for part, _ in parts])
        self.up = torch.cat([strength * part.scale * part.up.float() for part, strength in parts], dim=1)

    def __call__(self, _layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        (x,) = given
        if (self.down.device, self.down.dtype) != (x.device, x.dtype):
            self.down, self.up = self.down.to(x), self.up.to(x)
        return out + F.linear(F.linear(x, self.down), self.up)


def find_layer(model: MagiDiT, name: str) -> nn.Module:
    """A linear layer by its public name, wherever its weight lies."""
    streamed = _streamed(model, name)
    if streamed is None:
        return model.get_submodule(name)
    layers, number, inner = streamed
    return layers.modules[number].get_submodule(inner)


def _weight(model: MagiDiT, name: str) -> Tensor:
    streamed = _streamed(model, name)
    if streamed is None:
        return model.get_parameter(f"{name}.weight").detach()
    layers, number, inner = streamed
    return layers.host(number)[f"{inner}.weight"]


def _streamed(model: MagiDiT, name: str) -> tuple[StreamedLayers, int, str] | None:
    """Where a linear layer is whose weight waits in host memory: the layers, the number of the one, and its name in there."""
    layers = model.videodit_blocks.layers
    if not isinstance(layers, StreamedLayers) or not name.startswith(LAYERS):
        return None
    number, _, inner = name.removeprefix(LAYERS).partition(".")
    return layers, int(number), inner


def _holds(model: MagiDiT, name: str) -> bool:
    """Whether a model, which may be one worker's share of the layers, has this one."""
    try:
        find_layer(model, name)
    except (AttributeError, KeyError):
        return False
    return True


def _by_layer(model: MagiDiT, adapters: Iterable[Weighted]) -> dict[str, list[tuple[LowRank, float]]]:
    """What is added to each layer that the model holds; strength 0 adds nothing."""
    parts: dict[str, list[tuple[LowRank, float]]] = {}
    for adapter, strength in adapters:
        if strength:
            for name in filter(partial(_holds, model), adapter.layers):
                parts.setdefault(name, []).append((adapter.layers[name], strength))
    return parts
