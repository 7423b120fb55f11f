"""Layers whose weights live in host memory, two of them at a time on the device.

Notable:
- A layer's tensors lie side by side in one slab, so one copy moves them all. Two slots on the device take turns: while one layer
  computes, the next one's slab arrives on a stream of its own. The copies are hidden wherever a layer computes longer than its
  slab takes (about 7,000 tokens in a pass on a 4090, 16,000 on an H100).
- Nothing of a streamed layer is a parameter of the model, so nobody moves it by moving the model, and the slots live no longer than
  a pass: memory goes back when the model is idle.
- On the CPU the same code copies without streams.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from magi_core.model import MagiDiT
from magi_core.model.arrivals import Arrivals
from magi_core.model.layers import Layer

logger = logging.getLogger(__name__)

Place = Literal["resident", "streamed"]
"""Of the layers' weights: on the device, or in host memory."""
SLOTS = 2
ALIGNMENT = 256
"""In bytes, of a tensor in a slab: what every kernel's vector loads are happy with."""


def stream(model: MagiDiT) -> StreamedLayers:
    """Exchange a model's layers, which have no memory yet, for ones whose weights stay in host memory, and give these."""
    blocks = model.videodit_blocks
    streamed = StreamedLayers({int(name): layer for name, layer in blocks.get_submodule("layers").named_children()})
    del blocks.layers
    blocks.layers = streamed
    return streamed


class Slab:
    """Tensors of given names, shapes and dtypes in one buffer."""

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        end = 0
        for name, tensor in like.items():
            self._places[name] = end, tensor.dtype, tensor.shape
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self.bytes = torch.empty(end, dtype=torch.uint8, device="cpu")

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The tensors in a copy of ``bytes``."""
        return {
            name: buffer[start : start + dtype.itemsize * shape.numel()].view(dtype).view(shape)
            for name, (start, dtype, shape) in self._places.items()
        }


class StreamedLayers:
    """Layers whose weights wait in host memory, pinned where there is a CUDA device. For inference: they do not learn.

    ``modules``, by number and ascending, are on the meta device; the tensors of ``host(i)`` are to be filled before the first pass.
    """

    on_host = True

    def __init__(self, modules: Mapping[int, nn.Module]) -> None:
        self.modules = {number: module.requires_grad_(False).train(False) for number, module in modules.items()}
        self._slabs = {number: Slab(module.state_dict()) for number, module in self.modules.items()}
        if torch.cuda.is_available():
            for slab in self._slabs.values():
                _pin(slab.bytes, self)

    def host(self, layer: int) -> dict[str, Tensor]:
        """A layer's tensors in host memory, by their names within the layer."""
        slab = self._slabs[layer]
        return slab.views(slab.bytes)

    def on(self, device: torch.device) -> Iterator[Layer]:
        slots = [self._slot(device) for _ in range(SLOTS)]
        arrivals = Arrivals(device)
        try:
            slabs = list(self._slabs.values())
            for slot, slab in zip(slots, slabs, strict=False):
                arrivals.copy(slot, slab.bytes)
            for i, (module, slab) in enumerate(zip(self.modules.values(), slabs, strict=True)):
                arrivals.wait()
                yield partial(_call, module, slab.views(slots[i % SLOTS]))
                if i + SLOTS < len(slabs):
                    arrivals.copy(slots[i % SLOTS], slabs[i + SLOTS].bytes)
        finally:
            arrivals.finish()

    def _slot(self, device: torch.device) -> Tensor:
        return torch.empty(max(len(slab.bytes) for slab in self._slabs.values()), dtype=torch.uint8, device=device)


def _call(module: nn.Module, weights: dict[str, Tensor], x: Tensor, shared: Any) -> Tensor:
    out: Tensor = functional_call(module, weights, (x, shared), strict=True)
    return out


def _pin(buffer: Tensor, owner: object) -> None:
    """Make host memory readable by the GPU itself until ``owner`` is gone. In place: torch's own pinned memory comes in powers of 2."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    failed = int(runtime.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))
    if not failed:
        weakref.finalize(owner, _unpin, buffer)
        return
    logger.warning(
        "%.1f GB of host memory could not be pinned; streamed weights arrive more slowly", buffer.nbytes / 1e9
    )
    with suppress(RuntimeError):  # the next launch reports the same failure once more
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()


def _unpin(buffer: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())  # type: ignore[no-untyped-call]
