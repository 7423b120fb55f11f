"""What the nodes that denoise share: what lies on their sockets, and room on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from magi_core.config import Sampling
from magi_core.cost.memory import MemoryPlan, Use, plan_memory, proposals, refusal
from magi_core.errors import MagiError
from magi_core.lora import Lora, Used, add, read, used
from magi_core.model.fp8 import EightBit

from . import memory
from .making import Encode
from .model import MagiModel
from .vae import MagiVAE

LORAS = "magi_loras"
"""Where a MODEL's options say which LoRAs it uses: its clones share the weights, which are left as they are."""


def model_of(model: ModelPatcher) -> MagiModel:
    """What lies in a MODEL; raises MagiError when it is of another kind."""
    held = getattr(model, "model", None)
    if not isinstance(held, MagiModel):
        raise MagiError(f"model is a {type(held).__name__}; connect 'Load MAGI Model'")
    return held


def loras_of(model: ModelPatcher) -> tuple[Lora, ...]:
    """The LoRAs that a MODEL uses, the first one first."""
    loras: tuple[Lora, ...] = model.model_options.get(LORAS, ())
    return loras


@contextmanager
def with_loras(model: ModelPatcher) -> Iterator[None]:
    """Within, a MODEL's transformer uses its LoRAs. Workers use those that they were started with."""
    held = model_of(model)
    if held.workers is not None:
        yield
        return
    remove = add(held.dit, read(loras_of(model), held.config.dit))
    try:
        yield
    finally:
        remove()


def used_by(model: ModelPatcher) -> tuple[Used, ...]:
    """The LoRAs that a MODEL uses, as sessions remember them; all that ComfyUI's own loaders change counts as one."""
    own = used(loras_of(model))
    return (*own, Used("of ComfyUI's loader", 1.0, _digest(model.patches))) if model.patches else own


def _digest(patches: dict[str, Any]) -> str:
    """SHA-256 of what a MODEL's weights are to be changed by: layers, strengths and matrices."""
    digest = hashlib.sha256()

    def add_up(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, tuple | list):
            digest.update(f"{len(value)}".encode())
            for each in value:
                add_up(each)
        elif isinstance(value, str | int | float | None):
            digest.update(repr(value).encode())
        else:  # an adapter, which has its matrices as weights
            digest.update(type(value).__name__.encode())
            add_up(getattr(value, "weights", None))

    add_up([(layer, changes) for layer, changes in sorted(patches.items())])
    return digest.hexdigest()


def unpatched(model: ModelPatcher) -> None:
    """Raise MagiError where a model that workers read from its file was changed in this process."""
    if model.patches:
        raise MagiError(
            "the model was changed in a way that the workers of 'MAGI Devices' do not get; disconnect one of the two. "
            "Of LoRAs, use those of 'MAGI LoRA'"
        )


def patched_in_8_bits(model: ModelPatcher) -> None:
    """Raise MagiError where ComfyUI is to change weights that it cannot read: those in 8 bits, whose scale lies beside them."""
    if any(isinstance(model_of(model).get_submodule(key.rpartition(".")[0]), EightBit) for key in model.patches):
        raise MagiError("this loader of LoRAs cannot change weights in fp8; use 'MAGI LoRA' in its place")


def encoder_of(vae: MagiVAE | None, scale_factor: float, fit: Any) -> Encode | None:
    """Frames to scaled latents, where there is a VAE; raises MagiError when it is of another kind."""
    if vae is None:
        return None
    if not isinstance(vae, MagiVAE):
        raise MagiError(f"vae is a {type(vae).__name__}; connect 'Load MAGI VAE'")
    return lambda frames, height, width: vae.encode_frames(frames, height, width, fit) * scale_factor


def clip_latents(frames: Any, size: tuple[int, int], encode: Encode | None) -> torch.Tensor:
    """Scaled latents of the end of a clip, whole groups of 4 frames; raises MagiError when it is too short or there is no VAE."""
    usable = len(frames) // 4 * 4
    if not usable:
        raise MagiError(f"the video to continue has {len(frames)} frames; at least 4 are needed")
    if encode is None:
        raise MagiError("a video is to be continued but there is no VAE; connect 'Load MAGI VAE' to the vae input")
    return encode(frames[-usable:], *size)


def use_of(model: ModelPatcher, sampling: Sampling, height: int, width: int) -> Use:
    """A video of a size in pixels to be made with a model. Raises MagiError where it cannot fit the device, with settings that would."""
    held = model_of(model)
    patched_in_8_bits(model)
    adapters = sum(adapter.parameters for adapter, _ in read(loras_of(model), held.config.dit))
    use = held.use(height, width, sampling, gpu=model.load_device.type != "cpu")
    use = replace(use, beside=adapters * held.config.dit.params_dtype.itemsize)
    if held.workers is not None:
        unpatched(model)
        return held.workers.placed(use, memory.smallest(held.workers.devices))
    free = memory.available(model)
    if not plan_memory(use).fits(free):
        raise refusal(use, free)
    return use


def load(model: ModelPatcher, use: Use, vae: MagiVAE | None = None) -> bool:
    """Put the transformer on its device, with room for its work and a VAE's beside it; True where it had to be moved."""
    held = model_of(model)
    before = held.dit.null_caption.device
    beside = [] if vae is None or vae.patcher is None else [vae.patcher]
    own = plan_memory(use).working + use.beside if held.workers is None or held.workers.here else 0
    working = own + (0 if vae is None else vae.working_bytes(use.height, use.width))
    with memory.out_of_memory(lambda: lighter(use)):
        memory.on_device(model, *beside, working_bytes=working, whole=held.weights != "auto")
    return held.dit.null_caption.device != before


def lighter(use: Use) -> str:
    """Advice for who ran out of memory although the plan fitted."""
    plan: MemoryPlan = plan_memory(use)
    others = [other.text() for other in proposals(use, plan.total * 3 // 4)]
    return f"{plan.text()} were planned; what needs less: {'; '.join(others) or 'a smaller model'}"
