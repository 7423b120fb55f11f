"""Adapter files: safetensors with two small matrices for each adapted layer (Hu et al. 2021, arXiv:2106.09685, section 4.1).

Two forms are written, and read with what else is common (``names``):

    star.safetensors            one file, which ComfyUI's own LoRA loader reads too: diffusion_model.<layer>.lora_A.weight, .alpha
    star/                       a folder as peft has it: adapter_model.safetensors with base_model.model.<layer>.lora_A.weight,
                                adapter_config.json with rank and alpha

Every name and shape is held against the model before anything is used.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from magi_core.checkpoint.load import check_values
from magi_core.checkpoint.reader import open_weights, read_tensors
from magi_core.config import DiTConfig
from magi_core.errors import MagiError, shorten
from magi_core.files import atomic_write, read_json_object
from magi_core.lora.names import COMFYUI, PEFT, Role, other_kind, read_key, targets
from magi_core.presets import PRESETS

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHOWN = 4
"""Layers named in an error."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds to one layer's weight: scale * up @ down."""

    down: Tensor
    """[rank, inputs], lora_A"""
    up: Tensor
    """[outputs, rank], lora_B"""
    scale: float
    """alpha / rank"""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA, on the CPU in the dtype of its file."""

    layers: Mapping[str, LowRank]
    """By the name of the linear layer in the public checkpoint."""

    @property
    def parameters(self) -> int:
        return sum(part.down.numel() + part.up.numel() for part in self.layers.values())


def adapter_files(path: Path) -> tuple[Path, ...]:
    """The weights of an adapter and, where it has one, its configuration; raises MagiError when there is none."""
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise MagiError(f"there is no LoRA {str(path)!r}; give a .safetensors file, or a folder with {WEIGHTS}")
    beside = weights.with_name(CONFIG)
    return (weights, beside) if weights.name == WEIGHTS and beside.is_file() else (weights,)


def read_adapter(path: Path, config: DiTConfig) -> Adapter:
    """The adapter in a file or a folder, for the model that ``config`` describes.

    Raises MagiError when it is missing or damaged, is no plain LoRA, or does not fit the model; it says what it was made for, if known.
    """
    files = adapter_files(path)
    stored = open_weights(files[0])
    known = targets(config)
    found: dict[str, dict[Role, Tensor]] = defaultdict(dict)
    for name, tensor in read_tensors(stored):
        key = read_key(name, known)
        if key is None or tensor.dtype not in PLAIN:
            kind = other_kind(name)
            looks = f"it holds {kind}" if kind else f"it holds the tensor {shorten(name)}"
            raise MagiError(
                f"{path} is no plain LoRA: {looks}, which is not supported. Use a LoRA with lora_A and lora_B"
            )
        check_values(name, tensor, path)
        layer, role = key
        if role in found[layer]:
            raise MagiError(f"{path} has two tensors for {role} of {layer}; the file is damaged")
        found[layer][role] = tensor
    _check_shapes(found, config, path)
    settings = read_json_object(files[1]) if len(files) > 1 else {}
    try:
        return Adapter({layer: _part(layer, parts, settings) for layer, parts in found.items()})
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise MagiError(f"{path} does not say its alpha as a number; {files[-1].name} is damaged") from error


def write_adapter(path: Path, layers: Mapping[str, LowRank], model: str, metadata: Mapping[str, str]) -> None:
    """Write an adapter, all of one rank and scale: to one file where ``path`` ends in ``.safetensors``, else to a peft folder.

    model: what it was made for, for people to read. Raises MagiError where it cannot be written.
    """
    part = next(iter(layers.values()))
    rank = part.down.shape[0]
    alpha = part.scale * rank
    one_file = path.suffix == ".safetensors"
    prefix = COMFYUI if one_file else PEFT
    tensors: dict[str, Tensor] = {}
    for layer, low in layers.items():
        tensors[f"{prefix}{layer}.lora_A.weight"] = low.down.detach().cpu().contiguous()
        tensors[f"{prefix}{layer}.lora_B.weight"] = low.up.detach().cpu().contiguous()
        if one_file:
            tensors[f"{prefix}{layer}.alpha"] = torch.tensor(alpha)
    with atomic_write(path if one_file else path / WEIGHTS) as temporary:
        save_file(tensors, temporary, {"format": "pt", "model": model, **metadata})
    if not one_file:
        settings = {
            "peft_type": "LORA",
            "base_model_name_or_path": model,
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": sorted(layers),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "task_type": None,
        }
        with atomic_write(path / CONFIG) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _check_shapes(found: Mapping[str, Mapping[Role, Tensor]], config: DiTConfig, path: Path) -> None:
    problems = _problems(found, config)
    if not problems:
        return
    fitting = [name for name, preset in PRESETS.items() if not _problems(found, preset.dit)]
    made_for = f" It was made for {fitting[0]}." if fitting else ""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise MagiError(
        f"the LoRA {path} does not fit this model ({config.num_layers} layers of width {config.hidden_size}): "
        f"{'; '.join(problems[:SHOWN])}{more}.{made_for} Use it with the model that it was made for"
    )


def _problems(found: Mapping[str, Mapping[Role, Tensor]], config: DiTConfig) -> list[str]:
    """Why adapter and model do not fit, a phrase for each layer."""
    known, problems = targets(config), []
    for layer, parts in found.items():
        if layer not in known:
            problems.append(f"the model has no linear layer {shorten(layer)}")
        elif not {"down", "up"} <= parts.keys():
            problems.append(f"{layer} lacks one of its two matrices")
        else:
            outputs, inputs = known[layer]
            down, up = list(parts["down"].shape), list(parts["up"].shape)
            rank = down[0] if down else 0
            if not rank or down != [rank, inputs] or up != [outputs, rank]:
                problems.append(
                    f"the matrices of {layer} are {down} and {up}, needed are [rank, {inputs}] and [{outputs}, rank]"
                )
    return problems


def _part(layer: str, parts: Mapping[Role, Tensor], settings: Mapping[str, Any]) -> LowRank:
    """A layer's addition; alpha is its own, else what peft's configuration says, else the rank."""
    rank = parts["down"].shape[0]
    if "alpha" in parts:
        return LowRank(parts["down"], parts["up"], float(parts["alpha"]) / rank)
    patterns = settings.get("alpha_pattern") or {}
    alpha = next((value for name, value in patterns.items() if layer.endswith(name)), settings.get("lora_alpha", rank))
    return LowRank(parts["down"], parts["up"], float(alpha) / (sqrt(rank) if settings.get("use_rslora") else rank))
