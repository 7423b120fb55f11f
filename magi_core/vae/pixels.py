"""Between frames as people see them (uint8, [T, H, W, 3]) and video as the VAE sees it (float, [N, 3, T, H, W] in -1..1)."""

from __future__ import annotations

import torch
from torch import Tensor

from magi_core.errors import MagiError


def frames_to_video(frames: Tensor) -> Tensor:
    """uint8 [T, H, W, 3] to float32 [1, 3, T, H, W] in -1..1: v / 127.5 - 1 (spec section 13)."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise MagiError(f"frames must be uint8 [T, H, W, 3], not {frames.dtype} {tuple(frames.shape)}")
    return (frames.float() / 127.5 - 1).permute(3, 0, 1, 2).unsqueeze(0)


def video_to_frames(video: Tensor) -> Tensor:
    """[1, 3, T, H, W], nominally in -1..1, to uint8 [T, H, W, 3]: v * 127.5 + 127.5, clamped and truncated (spec section 13)."""
    if video.ndim != 5 or video.shape[:2] != (1, 3):
        raise MagiError(f"video must be [1, 3, T, H, W], not {tuple(video.shape)}")
    return (video[0].float() * 127.5).add_(127.5).clamp_(0, 255).to(torch.uint8).permute(1, 2, 3, 0)
