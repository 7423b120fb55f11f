"""Training states on disk: one safetensors file with everything a run needs to go on to the same bits.

Tensors are named ``model.<weight>``, ``ema.<weight>`` and ``<optimiser>.<field>.<weight>``; the counters stand as JSON in the file's
metadata. The file is replaced whole or not at all, so a run that is killed goes on from its last state. It holds whole tensors, also of
weights that lie in shards on several devices: another number of devices can go on with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from magi_core.errors import MagiError
from magi_core.files import atomic_write

Keep = Callable[[Mapping[str, Tensor], int], None]
"""Takes the averaged weights, whole and on the CPU, and the step they are of; called in the first process."""


@dataclass
class TrainingState:
    """What changes while a network is trained; ``step`` counts finished steps, ``seconds`` the time they took."""

    model: nn.Module
    ema: dict[str, Tensor]
    optimizers: Mapping[str, torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0

    def average(self, decay: float) -> None:
        """Move the averaged weights by 1 - decay towards the present ones."""
        targets = dict(self.model.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), [targets[name] for name in self.ema], 1 - decay)


def start_state(model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> TrainingState:
    """The state before the first step: averaged weights equal to the initial ones."""
    return TrainingState(model, {name: p.detach().clone() for name, p in model.named_parameters()}, optimizers)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, contiguous; those in shards are gathered, so all processes must call it with the same names."""
    gathered = ((name, t.full_tensor() if isinstance(t, DTensor) else t) for name, t in tensors.items())
    return {name: tensor.detach().cpu().contiguous() for name, tensor in gathered}


def save_state(state: TrainingState, path: Path, *, write: bool = True) -> None:
    """Write the state to ``path``, replacing an older one atomically. Of several processes all call it and one has ``write``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in state.model.named_parameters()}
    tensors = {f"model.{name}": parameter.detach() for parameter, name in names.items()}
    tensors |= {f"ema.{name}": value for name, value in state.ema.items()}
    for kind, optimizer in state.optimizers.items():
        for parameter, fields in optimizer.state.items():
            tensors |= {f"{kind}.{field}.{names[parameter]}": value for field, value in fields.items()}
    counters = json.dumps({"step": state.step, "seconds": state.seconds})
    gathered = whole(tensors)
    if write:
        with atomic_write(path) as temporary:
            save_file(gathered, temporary, {"counters": counters})


def load_state(state: TrainingState, path: Path) -> None:
    """Fill ``state`` in place from ``path``; raises MagiError when the file is damaged or belongs to another network."""
    try:
        with safe_open(path, framework="pt") as file:
            counters = json.loads(file.metadata()["counters"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise MagiError(f"cannot go on from the training state {path}: {error}. Remove it to start afresh") from error
    for name, parameter in state.model.named_parameters():
        if f"model.{name}" not in tensors or tensors[f"model.{name}"].shape != parameter.shape:
            raise MagiError(
                f"the training state {path} is of another network: it does not fit {name}. Choose another folder"
            )
        with torch.no_grad():
            parameter.copy_(_placed(tensors[f"model.{name}"], parameter))
            state.ema[name].copy_(_placed(tensors[f"ema.{name}"], parameter))
    for kind, optimizer in state.optimizers.items():
        for parameter, name in _owned(state.model, optimizer):
            fields = {key.split(".")[1]: value for key, value in tensors.items() if _is_field(key, kind, name)}
            if fields:
                moments = {k: _placed(v, parameter) if v.ndim else v for k, v in fields.items()}
                optimizer.state[parameter] = moments
    state.step, state.seconds = counters["step"], counters["seconds"]


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    """On the device of ``like``, and in shards where that is; every process takes its own from what it has read."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device)


def _owned(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, str]]:
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [(parameter, name) for name, parameter in model.named_parameters() if id(parameter) in owned]


def _is_field(key: str, kind: str, name: str) -> bool:
    return key.startswith(f"{kind}.") and key.split(".", 2)[2] == name
