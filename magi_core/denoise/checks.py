"""What a session takes in, checked and brought to the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.model import MagiDiT
from magi_core.text.caption import Caption


def check_size(model: MagiDiT, height: int, width: int) -> None:
    """Raise MagiError where latents of this size cannot be cut into patches."""
    patch = model.config.patch_size
    for name, size in (("height", height), ("width", width)):
        if size % patch or size < 2 * patch:
            raise MagiError(f"the latent {name} is {size}; it must be a multiple of {patch}, at least {2 * patch}")


def check_latents(name: str, latents: Tensor, model: MagiDiT, shape: Sequence[int | None]) -> Tensor:
    """Latents [N, C, T, H, W] as float32; None in ``shape`` stands for any number. Raises MagiError with ``name`` in it."""
    fits = len(latents.shape) == len(shape) and all(
        size == wanted or (wanted is None and size > 0) for size, wanted in zip(latents.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise MagiError(
            f"{name} has the shape {list(latents.shape)}; it must be latents of shape [{wanted}]: "
            "batch, channels, frames, height, width. Encode it at the size of the video"
        )
    if not latents.isfinite().all():
        raise MagiError(f"{name} holds values that are not finite; encode the image or clip again")
    return latents.to(model.null_caption.device, torch.float32)


def check_caption(caption: Caption, model: MagiDiT) -> Caption:
    """Its real tokens; the mask on the CPU, where the model counts it. Raises MagiError for another width or NaN."""
    channels = model.config.caption_channels
    if caption.channels != channels:
        raise MagiError(
            f"a caption is {caption.channels} wide, this model takes {channels}; use the text encoder that belongs to it"
        )
    embedding = caption.compact().embedding
    if not embedding.isfinite().all():
        raise MagiError("a caption holds values that are not finite; encode the prompt again")
    return Caption(embedding.to(model.null_caption.device, torch.float32), torch.ones(len(embedding)))
