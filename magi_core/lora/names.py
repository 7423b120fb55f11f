"""What adapters call a layer and its matrices: the names of peft, ComfyUI, diffusers and kohya's trainers, in ours.

Ours are those of the public checkpoint: ``videodit_blocks.layers.0.mlp.linear_fc1``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from magi_core.checkpoint.layout import LAYERS, expected_tensors
from magi_core.config import DiTConfig

Role = Literal["down", "up", "alpha"]

PEFT = "base_model.model."
COMFYUI = "diffusion_model."
PREFIXES = (PEFT + COMFYUI, PEFT, COMFYUI, "transformer.", "model.", "")
FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
"""Before names whose dots have become underscores."""
ENDS: Mapping[str, Role] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "a LoCon with a middle matrix",
    "hada_w": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    ".diff": "whole weights",
    "lora_bias": "biases",
}
"""Parts of tensor names by which adapters that are not plain LoRA are known."""


def targets(config: DiTConfig) -> dict[str, tuple[int, int]]:
    """The linear layers of a model, by name: (outputs, inputs)."""
    return {
        name.removesuffix(".weight"): (tensor.shape[-2], tensor.shape[-1])
        for name, tensor in expected_tensors(config).items()
        if name.endswith(".weight") and len(tensor.shape) in (2, 3)
    }


def usual_targets(config: DiTConfig) -> list[str]:
    """The layers that training adapts: all linear ones of attention and MLP."""
    return [name for name in targets(config) if name.startswith(LAYERS) and "ada_modulate_layer" not in name]


def read_key(name: str, known: Collection[str]) -> tuple[str, Role] | None:
    """The layer and the role that a tensor's name says; None where it is no part of a LoRA.

    known: the layers of the model, among which a name without dots is looked for; a layer that is none of them is given as it is called.
    """
    end = next((end for end in ENDS if name.endswith(end)), None)
    if end is None:
        return None
    stem = name.removesuffix(end)
    names = [stem.removeprefix(prefix) for prefix in PREFIXES if stem.startswith(prefix)]
    if any(stem.startswith(prefix) for prefix in FLAT):
        flat = {layer.replace(".", "_"): layer for layer in known}
        names += [flat.get(stem.removeprefix(prefix), "") for prefix in FLAT]
    return next((layer for layer in names if layer in known), names[0]), ENDS[end]


def other_kind(name: str) -> str | None:
    """What kind of adapter, other than a plain LoRA, has a tensor of this name."""
    return next((kind for part, kind in OTHER_KINDS.items() if part in name), None)
