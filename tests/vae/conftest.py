"""Small random VAEs: one with the release's shape of things, one with windows of a single latent frame."""

import pytest
import torch

from magi_core.vae import VAEConfig, ViTVAE

TINY = VAEConfig(video_size=16, video_length=8, patch_size=4, z_chans=4, embed_dim=64, depth=1, num_heads=2)


def random_vae(config: VAEConfig) -> ViTVAE:
    generator = torch.Generator().manual_seed(0)
    vae = ViTVAE(config)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_vae() -> ViTVAE:
    return random_vae(TINY)


@pytest.fixture(scope="session")
def single_frame_vae() -> ViTVAE:
    return random_vae(VAEConfig(**{**TINY.__dict__, "video_length": 4}))
