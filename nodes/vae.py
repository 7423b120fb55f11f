"""MAGI's VAE behind ComfyUI's VAE socket: what core's VAE Decode, VAE Encode and their tiled versions call.

Images are float [T, H, W, 3] in 0..1, latents unscaled [1, C, t, h, w]. Decoding goes chunk by chunk, so what it needs on the device does
not grow with the video's length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from magi_core.cost.around import decode_bytes, encode_bytes
from magi_core.errors import MagiError
from magi_core.images import Fit, Frames, resize
from magi_core.making import Decode
from magi_core.vae import Tiling, ViTVAE, decode_tiled, encode_tiled, tiling_for
from magi_core.vae.chunks import decode_frames, encode_frames

from .values import frames_of

CHUNK = 6
"""Latent frames decoded at once: a whole number of windows in time."""


class MagiVAE:
    """The VAE with its tiling. ``ready`` puts the weights on the device, given how many bytes the work needs beside them."""

    def __init__(self, vae: ViTVAE, ready: Callable[[int], Any], patcher: Any = None) -> None:
        self.first_stage_model, self.patcher = vae, patcher
        self.latent_channels, self.latent_dim = vae.config.z_chans, 3
        self._tiling = replace(tiling_for(vae.config), single_frame_rule=False)
        self._ready = ready

    def decode(self, samples: Tensor, vae_options: object = None) -> Tensor:
        """Images [1, T, H, W, 3] on the CPU."""
        return self._decode(samples, self._tiling)

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """As ``decode``, with windows of another size in space (in latents). In time the model's own are used."""
        size = self._patch
        return self._decode(samples, self._tiles(*(n and n * size for n in (tile_x, tile_y, overlap))))

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents [1, C, t, h, w] of images [T, H, W, 3]: one latent frame of a single image, else one for every four; the rest is cut."""
        return self._encode(pixels, self._tiling)

    def encode_tiled(
        self,
        pixels: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """As ``encode``, with windows of another size in space (in pixels)."""
        return self._encode(pixels, self._tiles(tile_x, tile_y, overlap))

    def encode_frames(self, frames: Frames, height: int, width: int, fit: Fit) -> Tensor:
        """Latents of uint8 frames [T, H, W, 3] brought to a size by the rule ``fit``; T is 1 or a multiple of 4."""
        vae, count = self.first_stage_model, CHUNK * self.first_stage_model.config.patch_length
        self._ready(self._encode_bytes(self._tiling, min(len(frames), count), height, width))
        resized = resize(frames, height, width, fit)
        parts = [resized[start : start + count] for start in range(0, len(resized), count)]
        return torch.cat([encode_frames(vae, part, 1.0, self._tiling).cpu() for part in parts], dim=2)

    def decoder(self, scale_factor: float) -> Decode:
        """Scaled latents to frames, where the weights lie now: for a thread beside the one that moves models."""
        vae, tiling = self.first_stage_model, self._tiling
        return lambda latents: decode_frames(vae, latents, scale_factor, tiling)

    def fingerprint(self) -> str:
        """A short name for what its frames depend on."""
        vae = self.first_stage_model
        name, weight = list(vae.named_parameters())[-1]
        digest = hashlib.sha256(repr((vae.config, self._tiling, name, weight.dtype)).encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def working_bytes(self, height: int, width: int) -> int:
        """What decoding a video of a size in pixels needs on the device beside the weights."""
        rows, columns = height // self._patch, width // self._patch
        return self._decode_bytes(self._tiling, (1, self.latent_channels, CHUNK, rows, columns))

    def spacial_compression_decode(self) -> int:
        return self._patch

    def spacial_compression_encode(self) -> int:
        return self._patch

    def temporal_compression_decode(self) -> int:
        return self.first_stage_model.config.patch_length

    def throw_exception_if_invalid(self) -> None:
        """Core asks this of every VAE; one that was loaded is valid."""

    def get_sd(self) -> dict[str, Tensor]:
        """The weights, for core's VAE Save."""
        return dict(self.first_stage_model.state_dict())

    @property
    def _patch(self) -> int:
        return self.first_stage_model.config.patch_size

    @torch.no_grad()
    def _decode(self, samples: Tensor, tiling: Tiling) -> Tensor:
        vae = self.first_stage_model
        if samples.ndim != 5 or samples.shape[1] != self.latent_channels:
            raise MagiError(
                f"samples have shape {list(samples.shape)}; MAGI's VAE decodes [1, {self.latent_channels}, frames, height, width]"
            )
        n, _, t, h, w = samples.shape
        self._ready(self._decode_bytes(tiling, (n, self.latent_channels, min(t, CHUNK), h, w)))
        images = torch.empty(n, t * vae.config.patch_length, h * self._patch, w * self._patch, 3)
        for start in range(0, t, CHUNK):
            pixels = decode_tiled(vae, samples[:, :, start : start + CHUNK].to(vae.device), tiling)
            first = start * vae.config.patch_length
            part = images[:, first : first + pixels.shape[2]]
            part.copy_(pixels.movedim(1, -1).cpu()).add_(1).div_(2).clamp_(0, 1)
        return images

    @torch.no_grad()
    def _encode(self, pixels: Tensor, tiling: Tiling) -> Tensor:
        vae, patch = self.first_stage_model, self._patch
        frames_of(pixels[:1], "pixels")  # the checks
        images = pixels[..., :3]
        length = vae.config.patch_length
        usable = len(images) // length * length or 1
        height, width = (side // patch * patch for side in images.shape[1:3])
        if not height or not width:
            raise MagiError(
                f"pixels are {images.shape[2]}x{images.shape[1]}; MAGI's VAE needs at least {patch}x{patch}"
            )
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        images = images[:usable, top : top + height, left : left + width]
        self._ready(self._encode_bytes(tiling, min(usable, CHUNK * length), height, width))
        parts = [part.movedim(-1, 0)[None].float() * 2 - 1 for part in images.split(CHUNK * length)]
        return torch.cat([encode_tiled(vae, part.to(vae.device), tiling).float().cpu() for part in parts], dim=2)

    def _tiles(self, tile_x: int | None, tile_y: int | None, overlap: int | None) -> Tiling:
        """Windows of about the size that was asked for. They overlap by a quarter, a whole number of patches, or not at all."""
        if not tile_x or not tile_y:
            return self._tiling
        unit = 4 * self._patch
        width, height = (max(unit, side // unit * unit) for side in (tile_x, tile_y))
        return replace(self._tiling, width=width, height=height, spatial_overlap=0.25 if overlap else 0.0)

    def _decode_bytes(self, tiling: Tiling, latents: tuple[int, ...]) -> int:
        vae = self.first_stage_model
        return decode_bytes(vae.config, vae.dtype, tiling, latents)

    def _encode_bytes(self, tiling: Tiling, frames: int, height: int, width: int) -> int:
        vae = self.first_stage_model
        return encode_bytes(vae.config, vae.dtype, tiling, (1, 3, frames, height, width))
