"""Operations and memory of what stands around the transformer: the VAE and the text encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from magi_core.cost.count import count_operations
from magi_core.cost.peak import peak_bytes
from magi_core.text.weights import T5Sizes
from magi_core.vae import Tiling, VAEConfig, ViTVAE, decode_tiled, encode_tiled, video_to_frames
from magi_core.vae.vit import Attention

T5_XXL = T5Sizes(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
"""The released model's."""


def decode_operations(config: VAEConfig, tiling: Tiling, frames: int, height: int, width: int) -> float:
    """Of decoding latents of so many frames, rows and columns: counted on the VAE's own code, without memory.

    All its blocks are the same, so one and two of them tell what more would count.
    """

    def count(depth: int) -> int:
        with torch.device("meta"):
            vae = ViTVAE(replace(config, depth=depth))
            latents = torch.empty(1, config.z_chans, frames, height, width)
        return count_operations(lambda: decode_tiled(vae, latents, tiling))

    one = count(1)
    return float(one + (config.depth - 1) * (count(2) - one)) if config.depth > 1 else float(one)


@lru_cache(maxsize=64)
def decode_bytes(config: VAEConfig, dtype: torch.dtype, tiling: Tiling, latents: tuple[int, ...]) -> int:
    """Most bytes that decoding latents of a shape [N, C, T, H, W] to frames holds at once beside the weights, the latents with them."""
    return _held(config, dtype, latents, lambda vae, x: video_to_frames(decode_tiled(vae, x, tiling)[:1]))


@lru_cache(maxsize=64)
def encode_bytes(config: VAEConfig, dtype: torch.dtype, tiling: Tiling, video: tuple[int, ...]) -> int:
    """Most bytes that encoding a float32 video of a shape [N, 3, T, H, W] holds at once beside the weights, the video with them."""
    return _held(config, dtype, video, lambda vae, x: encode_tiled(vae, x, tiling))


def _held(
    config: VAEConfig, dtype: torch.dtype, shape: tuple[int, ...], work: Callable[[ViTVAE, Tensor], object]
) -> int:
    """Counted on the VAE's own code, without memory. Blocks run one after the other, so one holds as much as all."""
    with torch.device("meta"):
        vae, x = ViTVAE(replace(config, depth=1)).to(dtype), torch.empty(shape)
    for module in vae.modules():
        if isinstance(module, Attention):
            module.attend = _attend
    return x.nbytes + peak_bytes(lambda: work(vae, x))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What attention holds, whatever kernel does it: its output."""
    return torch.empty_like(q)


def text_operations(sizes: T5Sizes, words: int) -> float:
    """Of encoding a prompt of ``words`` tokens: gated layers, every token seeing every other."""
    heads = sizes.num_heads * sizes.d_kv
    layer = 2.0 * words * sizes.d_model * (4 * heads + 3 * sizes.d_ff) + 4.0 * words**2 * heads
    return sizes.num_layers * layer
