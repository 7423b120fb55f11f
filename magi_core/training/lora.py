"""A LoRA in training: a frozen base model, and small matrices beside its linear layers, which alone learn (Hu et al. 2021, section 4.1).

The loop is that of fine-tuning. The base stays in the precision of its checkpoint, so a model takes a third to a half of the memory
that training all of it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magi_core.checkpoint.find import CheckpointFiles
from magi_core.checkpoint.load import load_dit
from magi_core.config import DiTConfig
from magi_core.errors import MagiError
from magi_core.kernels import attend
from magi_core.lora import LowRank
from magi_core.lora.apply import find_layer, hang
from magi_core.lora.names import targets, usual_targets
from magi_core.model import MagiDiT
from magi_core.training.products import attend_products

RATE_TIMES_WIDTH = 0.5
"""Learning rate times hidden_size: 2.6e-3 for magi-nano, 1.6e-4 for 4.5B. Matrices that begin at zero bear more than whole weights."""
MOST_RANK = 1024


@dataclass(frozen=True)
class LoraSettings:
    """What learns."""

    rank: int = 16
    """Of the matrices: more can learn more, and make a larger file."""
    alpha: float | None = None
    """What is learnt is scaled by alpha / rank; None: the rank."""
    targets: tuple[str, ...] = ()
    """Parts of layer names; layers that have one of them learn. None given: all linear layers of attention and MLP."""

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MOST_RANK:
            raise MagiError(f"the rank of the LoRA is {self.rank}; it must be from 1 to {MOST_RANK}, usually 8 to 128")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise MagiError(f"alpha is {self.alpha}; it must be above 0, usually the rank or half of it")

    @property
    def described(self) -> str:
        """What must stay as it is for a run to go on."""
        return f"rank {self.rank}, alpha {self.alpha or self.rank:g}, layers {' '.join(self.targets) or 'as usual'}"

    def layers(self, config: DiTConfig) -> list[str]:
        """The names of the layers that learn; raises MagiError where a target names none."""
        if not self.targets:
            return usual_targets(config)
        known = targets(config)
        for part in self.targets:
            if not any(part in name for name in known):
                ends = sorted({name.rpartition(".")[2] for name in usual_targets(config)})
                raise MagiError(
                    f"no layer is called {part!r}; parts of names are for instance {', '.join(ends)}, mlp, layers.3."
                )
        return [name for name in known if any(part in name for part in self.targets)]


class Matrices(nn.Module):
    """The matrices of a LoRA in float32, hung on the layers of a model; they add nothing until they have learnt.

    They begin alike in every process and on every device, since each may hold a share of them.
    """

    def __init__(self, model: MagiDiT, settings: LoraSettings, seed: int = 0) -> None:
        super().__init__()
        self.scale = (settings.alpha or settings.rank) / settings.rank
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        sizes = targets(model.config)
        device = model.null_caption.device
        generator = torch.Generator().manual_seed(seed)
        for name in settings.layers(model.config):
            outputs, inputs = sizes[name]
            down = (2 * torch.rand(settings.rank, inputs, generator=generator) - 1) / math.sqrt(inputs)
            key = _key(name)
            self.down[key] = nn.Parameter(down.to(device))
            self.up[key] = nn.Parameter(torch.zeros(outputs, settings.rank, device=device))
            hang(find_layer(model, name), _Learning(self, key))

    def layers(self, weights: Mapping[str, Tensor]) -> dict[str, LowRank]:
        """An adapter's layers of ``weights``, which are named as this module's parameters."""
        return {
            key.replace("/", "."): LowRank(weights[f"down.{key}"], weights[f"up.{key}"], self.scale)
            for key in self.down
        }


class _Learning:
    """A forward hook of one layer; looks its matrices up anew each time, since processes that share them exchange them."""

    def __init__(self, matrices: Matrices, key: str) -> None:
        self.matrices, self.key = matrices, key

    def __call__(self, _layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        down, up = self.matrices.down[self.key], self.matrices.up[self.key]
        learnt = F.linear(F.linear(given[0].to(down.dtype), down), up)
        return out + (self.matrices.scale * learnt).to(out.dtype)


def frozen(files: CheckpointFiles, device: torch.device) -> MagiDiT:
    """The transformer that a LoRA is made for, as it is, with an attention that has a backward.

    Raises MagiError for distilled and 8-bit models: what is learnt with the base model is used with them too.
    """
    dit = files.config.dit
    if dit.distill or dit.fp8_quant:
        kind = "8-bit" if dit.fp8_quant else "distilled"
        raise MagiError(f"{files.name} is {kind}; train the LoRA with the base model, and use it with either")
    model = load_dit(files, device=device, attend=attend_products if device.type == "cpu" else attend)
    return model.requires_grad_(False)


def _key(name: str) -> str:
    """A layer's name as the key of a parameter, which cannot have dots."""
    return name.replace(".", "/")
