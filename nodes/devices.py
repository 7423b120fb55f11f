"""Several devices for one video, between the loader and what denoises."""

from __future__ import annotations

import weakref
from typing import Any, get_args

import comfy.model_management as management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy_api.latest import io

from magi_core.parallel import FromFiles
from magi_core.parallel.devices import all_there, parse_devices
from magi_core.parallel.predict import Way

from . import inputs, values
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
    """The devices that are asked for; with "auto" all GPUs. Raises MagiError for wrong ones."""
    if devices.strip() in ("", AUTO):
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    names = parse_devices(devices, "devices")
    all_there(names, "devices")
    return names


def shared(model: ModelPatcher, devices: list[str], way: Way) -> ModelPatcher:
    """The same model, run by workers on these devices; they end when ComfyUI wants the room or lets go of the model."""
    unpatched(model)
    own = model_of(model)
    place = "streamed" if own.weights == "streamed" else "resident"
    loras = loras_of(model)
    build = FromFiles(own.files, own.config.dit.params_dtype, own.attention, place, own.fp8, loras)
    workers = Workers(build, devices, way)
    held = SharedModel(own, workers)
    weakref.finalize(held, workers.close)
    made = SharedPatcher(
        held, torch.device(devices[0]), management.unet_offload_device(), size=max(1, model.model_size())
    )
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
                    tooltip="auto: all GPUs; with less than two nothing changes. Or their names: cuda:0, cuda:1. cpu, cpu tries it out without a GPU.",
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
