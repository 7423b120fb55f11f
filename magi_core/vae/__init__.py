"""MAGI-1's video autoencoder: frames to latents (4 frames x 8 x 8 pixels a position) and back."""

from magi_core.vae.config import VAEConfig, parse_vae_config, read_vae_config, vae_config_document
from magi_core.vae.load import load_vae, save_vae
from magi_core.vae.pixels import frames_to_video, video_to_frames
from magi_core.vae.tiling import Tiling, decode_tiled, encode_tiled, tiling_for
from magi_core.vae.vit import ViTVAE

__all__ = [
    "Tiling",
    "VAEConfig",
    "ViTVAE",
    "decode_tiled",
    "encode_tiled",
    "frames_to_video",
    "load_vae",
    "parse_vae_config",
    "read_vae_config",
    "save_vae",
    "tiling_for",
    "vae_config_document",
    "video_to_frames",
]
