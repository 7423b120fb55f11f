"""Frames of a video to the latents that are denoised, and back: pixels, tiles and the model's scale factor in one place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from magi_core.vae.pixels import frames_to_video, video_to_frames
from magi_core.vae.tiling import Tiling, decode_tiled, encode_tiled
from magi_core.vae.vit import ViTVAE


@torch.inference_mode()
def encode_frames(vae: ViTVAE, frames: npt.NDArray[np.uint8], scale_factor: float, tiling: Tiling) -> Tensor:
    """Latents [1, C, T/4, H/8, W/8] float32 of uint8 frames [T, H, W, 3]; a single frame (an image) gives one latent frame.

    Raises MagiError where the size or the number of frames does not fit the VAE.
    """
    video = frames_to_video(torch.from_numpy(np.array(frames)))
    latents = encode_tiled(vae, video.to(vae.device), tiling)
    return latents.float() * scale_factor


@torch.inference_mode()
def decode_frames(vae: ViTVAE, latents: Tensor, scale_factor: float, tiling: Tiling) -> npt.NDArray[np.uint8]:
    """uint8 frames [T*4, H*8, W*8, 3] of latents [1, C, T, H, W]; see ``Tiling.single_frame_rule`` for what T can be lost."""
    pixels = decode_tiled(vae, latents.to(vae.device) / scale_factor, tiling)
    frames: npt.NDArray[np.uint8] = video_to_frames(pixels).cpu().numpy()
    return frames
