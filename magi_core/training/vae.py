"""Training magi-nano's VAE on synthetic clips, so that its latents are easy to generate.

Notable:

* Latents are normalised by the batch, then strong noise is added before the decoder sees them, as in "Latent Denoising Makes
  Good Visual Tokenizers" (arXiv 2507.15856). Latents that survive noise as strong as themselves forgive a diffusion model's
  errors. The network answers by putting the energy where the object is (8 times the mean variance there, next to none farther
  than two patches away), in a code that moves with the object: shifted by one patch, it is the same to 0.999.
* The mean of the latents at every position is pulled to zero: a DiT that only knows relative positions cannot draw a pattern that
  belongs to fixed places.
* A window is one latent frame (4 frames); a part of the windows stands still, as images do.
* Everything random in step n is drawn from (seed, n), so a resumed run equals an unbroken one and no random state is stored.
* At the end the normalisation is baked into the encoder's last layer, so latents have unit variance and the scale factor is 1.

Shapes: B windows, C latent channels, H W latent grid (8 x 8).
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magi_core.training.checkpoint import TrainingState, load_state, save_state, start_state
from magi_core.training.muon import Muon
from magi_core.training.precision import autocast
from magi_core.vae import VAEConfig, ViTVAE, load_vae, save_vae
from magi_core.vae.vit import Block
from magi_core.worlds.clips import IMAGE_FRAMES, WORLDS, render, sample_clip

NANO_VAE = VAEConfig(
    video_size=64, video_length=4, z_chans=16, embed_dim=128, depth=3, num_heads=4, use_final_proj=True
)

STATE_FILE = "vae_state.safetensors"
LOG_FILE = "vae_loss.jsonl"
LOG_EVERY = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VAETraining:
    """Settings of a run; the defaults made the VAE that is shipped."""

    steps: int = 1400
    batch: int = 64
    """Windows a step."""
    seed: int = 0
    muon_rate: float = 0.01
    """Learning rate of the blocks' matrices."""
    adam_rate: float = 2e-3
    """Learning rate of everything else."""
    warm_up: int = 100
    decay: float = 0.35
    """Share of the steps, at the end, over which the learning rates fall to zero."""
    clean: float = 0.35
    """Share of windows whose latents get no noise."""
    noise: float = 1.5
    """Largest noise, in standard deviations of the latents; drawn uniformly for the other windows."""
    position_mean: float = 0.1
    """Weight of the squared mean of the latents at every position."""
    object_weight: float = 5.0
    """Weight of pixels that are not background."""
    still: float = 0.2
    """Share of windows of four equal frames."""
    full_world: float = 0.15
    """Share of clips from the full world; the others are from the narrow one."""
    pool: int = 512
    """Clips that windows are cut from; one of them is replaced in every step."""
    chunks: int = 3
    """Length of these clips in chunks of 24 frames."""
    average: float = 0.99
    """Decay of the running average of the weights, which is what is kept."""
    statistics: int = 4096
    """Windows on which the latents' mean and variance are measured at the end."""
    save_every: int = 100


def train_vae(
    out: Path, work: Path, settings: VAETraining = VAETraining(), device: torch.device | str = "cpu"
) -> ViTVAE:
    """Train the VAE and write it to the folder ``out`` (float16); returns it as it was written, in float32.

    ``work`` holds the resumable state and the losses (JSON lines); an unfinished run goes on from there. Raises MagiError where
    the state is damaged or of another network.
    """
    torch.manual_seed(settings.seed)
    vae = initial_vae().to(device)
    work.mkdir(parents=True, exist_ok=True)
    state = start_state(vae, make_optimizers(vae, settings))
    if (work / STATE_FILE).is_file():
        load_state(state, work / STATE_FILE)
        log.info("vae: going on after step %d", state.step)
    clips = ClipPool(settings, state.step)
    while state.step < settings.steps:
        began = time.monotonic()
        clips.advance(state.step)
        losses = train_step(state, clips, settings, device)
        state.step += 1
        state.seconds += time.monotonic() - began
        if state.step % LOG_EVERY == 0 or state.step == settings.steps:
            row = {"step": state.step, "seconds": state.seconds} | {k: float(v) for k, v in losses.items()}
            with (work / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            log.info("vae: %s", ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
        if state.step % settings.save_every == 0 or state.step == settings.steps:
            save_state(state, work / STATE_FILE)
    vae.load_state_dict(state.ema)
    bake_normalisation(vae, clips, settings)
    save_vae(vae, out)
    return load_vae(out)


def train_step(
    state: TrainingState, clips: ClipPool, settings: VAETraining, device: torch.device | str
) -> dict[str, Tensor]:
    """One step on fresh windows; returns its losses."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + state.step)
    video = clips.windows(settings.batch, generator).to(device)
    sigma = draw_noise_levels(settings, generator).to(device)
    noise = torch.randn(settings.batch, NANO_VAE.z_chans, *NANO_VAE.native_grid, generator=generator).to(device)
    for optimizer in state.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_at(state.step, settings)
    vae = state.model
    assert isinstance(vae, ViTVAE)  # noqa: S101 - for the type checker
    with autocast(video.device):
        losses = window_losses(vae, video, sigma, noise, settings)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    for optimizer in state.optimizers.values():
        optimizer.step()
    state.average(settings.average)
    return {name: value.detach() for name, value in losses.items()}


def initial_vae() -> ViTVAE:
    """A new VAE; every residual branch starts at zero. The unused log variance is a constant."""
    vae = ViTVAE(NANO_VAE)
    for half in (vae.encoder, vae.decoder):
        torch.nn.init.normal_(half.pos_embed, std=0.2)
        torch.nn.init.normal_(half.cls_token, std=0.2)
    for module in vae.modules():
        if isinstance(module, Block):
            torch.nn.init.zeros_(module.attn.proj.weight)
            torch.nn.init.zeros_(module.mlp.fc2.weight)
            module.attn.attend = plain_attention
    channels = vae.config.z_chans
    with torch.no_grad():
        vae.encoder.last_layer.weight[channels:] = 0
        vae.encoder.last_layer.bias[channels:] = 2 * math.log(0.1)
    return vae


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by two matrix products: for 65 tokens twice as fast on a CPU as the fused kernel with its backward pass."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v


def make_optimizers(vae: ViTVAE, settings: VAETraining) -> dict[str, torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest; each group knows its ``peak`` learning rate."""
    matrices = [p for name, p in vae.named_parameters() if ".blocks." in name and p.ndim == 2]
    rest = [p for name, p in vae.named_parameters() if not (".blocks." in name and p.ndim == 2)]
    muon = {"params": matrices, "peak": settings.muon_rate}
    adam = {"params": rest, "peak": settings.adam_rate}
    return {
        "muon": Muon([muon], lr=settings.muon_rate, weight_decay=0.01),
        "adam": torch.optim.AdamW([adam], lr=settings.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    }


def rate_at(step: int, settings: VAETraining) -> float:
    """Share of the peak learning rate: linear warm-up, constant, linear decay to zero."""
    left = (settings.steps - step) / max(settings.decay * settings.steps, 1)
    return min((step + 1) / settings.warm_up, 1.0, left)


def draw_noise_levels(settings: VAETraining, generator: torch.Generator) -> Tensor:
    """Standard deviation [B, 1, 1, 1, 1] of the noise on each window's latents."""
    level, kind = torch.rand(2, settings.batch, 1, 1, 1, 1, generator=generator).unbind()
    return settings.noise * level * (kind >= settings.clean)


def window_losses(vae: ViTVAE, video: Tensor, sigma: Tensor, noise: Tensor, settings: VAETraining) -> dict[str, Tensor]:
    """The losses of windows [B, 3, 4, 64, 64]: ``loss`` is what to minimise, ``clean_mse`` the error of windows without noise."""
    latent = vae.encoder(video)[:, : vae.config.z_chans].float()
    variance, mean = torch.var_mean(latent, dim=(0, 2, 3, 4), keepdim=True)
    latent = (latent - mean) * torch.rsqrt(variance + 1e-6)
    decoded = vae.decoder(latent + sigma * noise).float()
    error = decoded - video
    weight = 1 + (settings.object_weight - 1) * object_mask(video)
    pixels = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
    position = latent.mean(0).square().mean()
    with torch.no_grad():
        clean_mse = error.square().mean(dim=(1, 2, 3, 4))[(sigma == 0).flatten()].mean()
    return {
        "loss": pixels + settings.position_mean * position,
        "pixels": pixels,
        "position": position,
        "clean_mse": clean_mse,
    }


def object_mask(video: Tensor) -> Tensor:
    """1.0 where a pixel of [B, 3, T, H, W] differs from the background, which is the median of the window; [B, 1, T, H, W]."""
    background = video[:, :, 0, ::8, ::8].flatten(2).median(dim=-1).values[:, :, None, None, None]
    return ((video - background).abs().amax(dim=1, keepdim=True) > 0.05).float()


class ClipPool:
    """Clips in memory; clip n of a run is always the same, and slot n % pool holds the newest of its clips."""

    def __init__(self, settings: VAETraining, step: int) -> None:
        self.settings = settings
        shape = (settings.pool, settings.chunks * 24, 64, 64, 3)
        self.frames = torch.empty(shape, dtype=torch.uint8)
        for number in range(step, step + settings.pool):
            self._put(number)

    def advance(self, step: int) -> None:
        """Replace the oldest clip; after step n the newest is clip n + pool."""
        self._put(step + self.settings.pool)

    def windows(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` windows [B, 3, 4, 64, 64] in -1..1, some of them still."""
        clip = torch.randint(len(self.frames), (count, 1), generator=generator)
        start = torch.randint(self.frames.shape[1] - IMAGE_FRAMES + 1, (count, 1), generator=generator)
        moving = torch.rand(count, 1, generator=generator) >= self.settings.still
        frames = self.frames[clip, start + torch.arange(IMAGE_FRAMES) * moving]
        return (frames.float() / 127.5 - 1).permute(0, 4, 1, 2, 3).contiguous()

    def _put(self, number: int) -> None:
        rng = np.random.default_rng([self.settings.seed, number])
        world = WORLDS["full" if rng.random() < self.settings.full_world else "narrow"]
        frames = render(sample_clip(world, self.settings.chunks, rng))
        self.frames[number % self.settings.pool] = torch.from_numpy(frames)


@torch.no_grad()
def bake_normalisation(vae: ViTVAE, clips: ClipPool, settings: VAETraining) -> None:
    """Make every latent channel zero in mean and one in variance.

    The decoder was trained on normalised latents, so the encoder's last layer is all that changes.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    last, channels = vae.encoder.last_layer, vae.config.z_chans
    windows = (
        clips.windows(settings.batch, generator).to(last.weight.device)
        for _ in range(settings.statistics // settings.batch)
    )
    variance, mean = torch.var_mean(torch.cat([vae.encode(video) for video in windows]), dim=(0, 2, 3, 4))
    last.weight[:channels] /= variance.sqrt()[:, None]
    last.bias[:channels] = (last.bias[:channels] - mean) / variance.sqrt()
