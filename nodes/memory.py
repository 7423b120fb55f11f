"""Weights under ComfyUI's care: who moves them, how much room there is, and what to say when it was not enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from magi_core.errors import MagiError
from magi_core.model.linear import wide_product
from magi_core.parallel.launch_ray import on_ray

CPU_IS_FULL = "can't allocate memory"
"""In the words of torch's allocator, which has no error class of its own there."""


class Held(nn.Module):
    """A network in a box on which ComfyUI may write what it keeps of it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.device: torch.device | None = None


class Linear(comfy.ops.manual_cast.Linear):  # type: ignore[misc]
    """ComfyUI loads such layers one by one, as many as fit, and brings the others where they are used."""


class WideLinear(Linear):
    """The same with a product in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(comfy.ops, "uncast_bias_weight"):  # ComfyUI of 2025 needs not be told when a weight was used
            return wide_product(x, comfy.ops.cast_bias_weight(self, x)[0])
        weight, bias, stream = comfy.ops.cast_bias_weight(self, x, offloadable=True)
        product = wide_product(x, weight)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return product


class Operations:
    """Layers that ComfyUI moves, for ``load_dit``."""

    Linear = Linear
    WideLinear = WideLinear


def patcher(model: nn.Module) -> ModelPatcher:
    """``model`` under ComfyUI's care: it is moved to the GPU when used and away when others need the room."""
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)  # ComfyUI of 2025 knows no dynamic one
    made = kind(model, management.get_torch_device(), management.unet_offload_device())
    made.add_callback(CallbacksMP.ON_LOAD, _bring_the_rest)
    return made


def _bring_the_rest(model: ModelPatcher, device: torch.device, *_: object) -> None:
    """What is not a layer of ComfyUI's always lies on the device; where only a part fits, ComfyUI would leave it behind."""
    for module in model.model.modules():
        if hasattr(module, "comfy_cast_weights"):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.to(device), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


def on_device(*models: ModelPatcher, working_bytes: int = 0, whole: bool = True) -> None:
    """Put models on their device with ``working_bytes`` free beside them; with whole=False as much of them as fits."""
    management.load_models_gpu(list(models), memory_required=working_bytes, force_full_load=whole)


def available(model: ModelPatcher) -> int:
    """Bytes of the device's memory that a model and its work may take when all others have left."""
    device = model.load_device
    free = int(management.get_free_memory(device))
    if device.type == "cpu":  # where models lie anyway
        return free + int(model.model_size())
    return free + sum(int(m.model_loaded_memory()) for m in management.current_loaded_models if m.device == device)


def smallest(devices: Sequence[str]) -> int:
    """Bytes of memory of the smallest device, which workers that already run have for themselves; 0 where only other hosts know."""
    return min(
        (int(management.get_total_memory(torch.device(name))) for name in devices if not on_ray(name)), default=0
    )


def make_room(needed: int, device: torch.device) -> None:
    """Let other models leave the device until ``needed`` bytes are free."""
    if device.type != "cpu":
        management.free_memory(needed, device)


@contextmanager
def out_of_memory(advice: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory into an error that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) and CPU_IS_FULL not in str(error):
            raise
        management.soft_empty_cache()
        raise MagiError(f"there is not enough memory on the device: {advice()}") from error
