"""What the model asks of its layers, wherever their weights live.

A layer is anything that maps (hidden states, what the pass shares) to hidden states. ``on(device)`` gives the layers of one pass, in
order, each ready to be called until the next is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Layer = Callable[[Tensor, Any], Tensor]


class Layers(Protocol):
    """The layers of a transformer, wherever their weights are."""

    on_host: bool
    """Whether their weights wait in host memory: where these do not fit on the device, keys and values need not either."""

    def on(self, device: torch.device) -> Iterable[Layer]:
        """The layers of one pass over hidden states on ``device``."""
        ...


class ResidentLayers(nn.ModuleList):
    """Layers whose weights are ordinary parameters, on the device already, or brought there by the host's linear layers."""

    on_host = False

    def on(self, device: torch.device) -> Iterable[Layer]:
        return self


class SomeLayers(nn.ModuleDict):
    """Some of a transformer's layers, by the numbers that they have in the whole one; a pass goes through these only."""

    on_host = False

    def on(self, device: torch.device) -> Iterable[Layer]:
        return self.values()


def keep_layers(blocks: nn.Module, numbers: Sequence[int]) -> None:
    """Leave a transformer's ``blocks`` only these of its layers, ascending."""
    layers = dict(blocks.get_submodule("layers").named_children())
    blocks.layers = SomeLayers({str(number): layers[str(number)] for number in numbers})
