"""LoRAs: small files that teach a model something new, between the loader and what denoises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from magi_core.checkpoint.reader import PICKLE_SUFFIXES
from magi_core.errors import MagiError
from magi_core.lora import Lora, read
from magi_core.lora.choice import STRONGEST

from . import values
from .running import LORAS, loras_of, model_of
from .sockets import CATEGORY

KIND = "loras"


def lora_choices() -> list[str]:
    """What lies in ComfyUI's folder of LoRAs and can be read without danger."""
    return [name for name in folder_paths.get_filename_list(KIND) if Path(name).suffix not in PICKLE_SUFFIXES]


def lora_path(name: str) -> Path:
    """Raises MagiError when it is not there (any more)."""
    found = folder_paths.get_full_path(KIND, name)
    if not found:
        raise MagiError(f"{name!r} is not in ComfyUI's folder {KIND}; put it there and reload the page")
    return Path(found)


class UseLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiLora",
            display_name="MAGI LoRA",
            category=CATEGORY,
            description="Lets a MAGI model use a LoRA: a small file that teaches it a look, a thing or a motion. Several in a row add up. "
            "Works with streamed weights, fp8 and several devices.",
            inputs=[
                io.Model.Input("model", tooltip="From 'Load MAGI Model', or from another 'MAGI LoRA'."),
                io.Combo.Input(
                    "lora_name",
                    options=lora_choices(),
                    tooltip="A LoRA in models/loras that was made for this model. Reload the page to see new ones.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-STRONGEST,
                    max=STRONGEST,
                    step=0.05,
                    tooltip="How strongly it is used. 1: as it was trained. 0: not at all. Negative: away from what it was trained on.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None) -> bool | str:
        return values.checked(lambda: values.check_choice("lora_name", lora_name, lora_choices()))

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> Any:
        state = lora_path(lora_name).stat()
        return state.st_mtime_ns, state.st_size

    @classmethod
    def execute(cls, model: ModelPatcher, lora_name: str, strength: float) -> io.NodeOutput:
        held = model_of(model)
        if held.workers is not None:
            raise MagiError(
                "'MAGI LoRA' stands behind 'MAGI Devices', whose workers have their model already; put it before"
            )
        lora = Lora(lora_path(lora_name), strength).pinned()
        read([lora], held.config.dit)
        if not strength:
            return io.NodeOutput(model)
        using = model.clone()
        using.model_options[LORAS] = (*loras_of(model), lora)
        return io.NodeOutput(using)


NODES: list[Any] = [UseLora]
