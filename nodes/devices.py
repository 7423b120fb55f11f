"""Several devices for one video, between the loader and what denoises."""

from __future__ import annotations

import weakref
from typing import Any, get_args

import comfy.model_management as management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy_api.latest import io

from magi_core.cost.memory import weight_bytes
from magi_core.errors import MagiError
from magi_core.parallel import FromFiles
from magi_core.parallel.devices import all_there, home, parse_devices
from magi_core.parallel.launch_ray import on_ray
from magi_core.parallel.predict import Way

from . import host, inputs, values
from .model import SharedModel
from .running import LORAS, loras_of, model_of, unpatched
from .sockets import CATEGORY
from .workers import Workers

AUTO = "auto"
WAYS = list(get_args(Way))


class SharedPatcher(ModelPatcher):  # type: ignore[misc]
    """Has no weights to move, but room on the first device that others get by ending the workers."""

    def loaded_size(self) -> int:
        return int(self.size) if self.model.workers.alive else 0


def named(devices: str) -> list[str]:
    """The devices that are asked for; with "auto" all GPUs. Raises MagiError for wrong ones, and for hosts that this one does not trust."""
    if devices.strip() in ("", AUTO):
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    names = parse_devices(devices, "devices")
    all_there(names, "devices")
    _trusted(names[0])
    return names


def _trusted(device: str) -> None:
    """Raise MagiError where a workflow alone names a cluster: what that answers could run any program here."""
    asked, file = on_ray(device), host.clusters_file()
    if asked is None or asked.address in ("", "auto"):
        return
    listed = file.read_text(encoding="utf-8", errors="replace").split() if file.is_file() else []
    if asked.address not in listed:
        raise MagiError(
            f"devices names the Ray cluster {asked.address}, which this ComfyUI does not know; if you trust it, write its address "
            f"in a line of {file}. ray:{asked.kind}@auto is the cluster that this computer is part of"
        )


def shared(model: ModelPatcher, devices: list[str], way: Way) -> ModelPatcher:
    """The same model, run by workers on these devices; they end when ComfyUI wants the room or lets go of the model."""
    unpatched(model)
    own = model_of(model)
    loras = loras_of(model)
    build = FromFiles(own.files, own.config.dit.params_dtype, own.attention, fp8=own.fp8, loras=loras)
    workers = Workers(build, devices, way, own.asked)
    held = SharedModel(own, workers)
    weakref.finalize(held, workers.close)
    outside, layers = weight_bytes(own.config.dit, own.fp8)
    here = home(devices)
    size = 1 if here is None else outside + (0 if own.asked == "streamed" else sum(layers))
    device = torch.device(here or management.get_torch_device())
    made = SharedPatcher(held, device, management.unet_offload_device(), size=size)
    made.model_options[LORAS] = loras
    # ComfyUI also detaches, in part, what it is about to load once more.
    made.add_callback(CallbacksMP.ON_DETACH, lambda _, wholly: workers.close() if wholly else None)
    return made


class Devices(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiDevices",
            display_name="MAGI Devices",
            category=CATEGORY,
            description="Lets several GPUs work on one video together. Put it between 'Load MAGI Model' and 'Chunk Denoise' or 'Extend Video'. "
            "A model that does not fit one GPU is dealt out to all.",
            inputs=[
                io.Model.Input("model", tooltip="From 'Load MAGI Model'."),
                io.String.Input(
                    "devices",
                    default=AUTO,
                    tooltip="auto: all GPUs; with less than two nothing changes. Or their names: cuda:0, cuda:1. cpu, cpu tries it out without a GPU. "
                    "8xray:cuda@auto: 8 GPUs of the Ray cluster that this computer is part of.",
                ),
                inputs.choice(
                    "strategy",
                    WAYS,
                    "What the devices share. auto: whatever is predicted to be fastest. passes: the passes of guidance. keys: every layer, "
                    "keys and values are exchanged. heads: every layer, attention heads are exchanged. "
                    "pipeline: each has some of the layers, for models that do not fit one GPU.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, devices: str | None, strategy: str | None) -> bool | str:
        return values.checked(
            lambda: devices is None or named(devices),
            lambda: values.check_choice("strategy", strategy, WAYS),
        )

    @classmethod
    def execute(cls, model: ModelPatcher, devices: str, strategy: Way) -> io.NodeOutput:
        names = named(devices)
        automatic = devices.strip() in ("", AUTO)
        return io.NodeOutput(model if automatic and len(names) < 2 else shared(model, names, strategy))


NODES: list[Any] = [Devices]
