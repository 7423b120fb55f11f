"""A model's parts, each read from disk when it is first needed: transformer, VAE, text encoder, special tokens.

Notable: one thing decides where the transformer's weights lie, the video that it is first read for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from magi_core.checkpoint.find import CheckpointFiles
from magi_core.checkpoint.load import load_dit
from magi_core.config import Sampling
from magi_core.cost.around import decode_bytes
from magi_core.cost.estimate import vae_bytes
from magi_core.cost.memory import Use, choose_place, free_bytes
from magi_core.errors import MagiError
from magi_core.images import Fit, Frames, resize
from magi_core.kernels import attention
from magi_core.lora import Lora, read, use
from magi_core.memory.streaming import Place
from magi_core.model import MagiDiT
from magi_core.text.cache import EmbeddingCache
from magi_core.text.caption import Caption
from magi_core.text.encoder import T5TextEncoder
from magi_core.text.special_tokens import SpecialTokens
from magi_core.vae import Tiling, VAEConfig, ViTVAE, load_vae, read_vae_config, tiling_for
from magi_core.vae.chunks import encode_frames
from magi_core.vae.load import CONFIG_FILE


class Parts:
    """What ``files`` name, as it is to be used: on which device, in what precision, with which adapters."""

    def __init__(
        self,
        files: CheckpointFiles,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        weights: Place | Literal["auto"] = "auto",
        fp8: bool = False,
        attention: str = "auto",
        text_cache: Path | None = None,
        loras: Sequence[Lora] = (),
    ) -> None:
        self.files, self.config = files, files.config
        self.device, self.dtype = torch.device(device), dtype
        self.weights, self.fp8, self.attention = weights, fp8, attention
        self._text_cache = text_cache
        self.loras = tuple(loras)

    @cached_property
    def dit(self) -> MagiDiT:
        """The transformer, placed for the video that it was first read for; asked for first, for one of the model's own size."""
        return self.read_dit(self.config.height, self.config.width, self.config.sampling)

    def read_dit(self, height: int, width: int, sampling: Sampling) -> MagiDiT:
        """The transformer, placed so that a video of that size in pixels fits; raises MagiError where it cannot."""
        dit = self.config.dit if self.dtype is None else replace(self.config.dit, params_dtype=self.dtype)
        gpu = self.device.type == "cuda"
        adapters = read(self.loras, dit)
        beside = sum(adapter.parameters for adapter, _ in adapters) * dit.params_dtype.itemsize
        if gpu and self.files.vae is not None:
            beside += self._vae_bytes(height, width, sampling)
        needed = Use(
            replace(self.config, dit=dit),
            height,
            width,
            sampling,
            fp8=self.fp8,
            beside=beside,
            gpu=gpu,
        )
        model = load_dit(
            self.files,
            device=self.device,
            dtype=self.dtype,
            attend=attention(self.attention, self.device),
            weights=choose_place(needed, self.weights, free_bytes(self.device)),
            fp8=self.fp8,
        )
        use(model, adapters)
        return model

    @cached_property
    def vae(self) -> ViTVAE:
        return load_vae(self.vae_folder, self.device, self.vae_dtype(gpu=self.device.type != "cpu"))

    def vae_dtype(self, *, gpu: bool) -> torch.dtype:
        """bfloat16 beside a bfloat16 transformer on a GPU, as the reference; float32 otherwise."""
        low = gpu and (self.dtype or self.config.dit.params_dtype) == torch.bfloat16
        return torch.bfloat16 if low else torch.float32

    def _vae_bytes(self, height: int, width: int, sampling: Sampling) -> int:
        """What the VAE will take on a GPU besides what it has already: a chunk is decoded while the next ones are denoised."""
        config, dtype = self.vae_config, self.vae_dtype(gpu=True)
        latents = (1, config.z_chans, sampling.chunk_width, height // config.patch_size, width // config.patch_size)
        weights = 0 if "vae" in vars(self) else vae_bytes(config, dtype)
        return weights + decode_bytes(config, dtype, self.tiling, latents)

    @property
    def vae_folder(self) -> Path:
        """Where the VAE is; raises MagiError where there is none."""
        return _found(self.files.vae, self.files)

    @cached_property
    def vae_config(self) -> VAEConfig:
        """The VAE's sizes, without its weights; raises MagiError where they do not belong to the transformer's."""
        config = read_vae_config(self.vae_folder / CONFIG_FILE)
        latents, dit = (config.patch_length, config.z_chans), self.config.dit.latent_channels
        if latents != (self.config.temporal_downsample_factor, dit):
            raise MagiError(
                f"the VAE in {self.files.vae} makes {config.z_chans} channels of {config.patch_length} frames each, the transformer "
                f"takes {dit} of {self.config.temporal_downsample_factor}; use the VAE that belongs to the model"
            )
        return config

    @cached_property
    def tiling(self) -> Tiling:
        """Windows for encoding and decoding; no frame of a video is dropped (spec 14.11 is the reference's exception)."""
        return replace(tiling_for(self.vae_config), single_frame_rule=False)

    @cached_property
    def text_encoder(self) -> T5TextEncoder:
        cache = EmbeddingCache(self._text_cache) if self._text_cache else None
        length = self.config.dit.caption_max_length
        return T5TextEncoder(_found(self.files.t5, self.files), max_length=length, cache=cache)

    @cached_property
    def special_tokens(self) -> SpecialTokens | None:
        path = self.files.special_tokens
        return SpecialTokens.load(path, self.config.dit.caption_channels) if path else None

    def encode(self, frames: Frames, height: int, width: int, fit: Fit) -> Tensor:
        """Scaled latents [1, C, T/4, H/8, W/8] of frames [T, H0, W0, 3], brought to the size in pixels first."""
        return encode_frames(self.vae, resize(frames, height, width, fit), self.config.scale_factor, self.tiling)

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Caption]:
        """Each distinct prompt's caption. The text encoder's weights are let go of afterwards."""
        distinct = list(dict.fromkeys(prompts))
        captions = self.text_encoder.encode(distinct)
        self.text_encoder.unload()
        return dict(zip(distinct, captions, strict=True))


def _found(path: Path | None, files: CheckpointFiles) -> Path:
    if path is None:
        raise MagiError(f"{files.name} is not complete: {'; '.join(files.missing)}")
    return path
