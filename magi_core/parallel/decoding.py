"""Whether the devices of a model decode its chunks too, each a part: where that is worth it, and the VAE fits beside what they have.

Otherwise one device decodes, beside the step that it has a share of. All others wait for it in that step, for most of the time that the
decoding takes. What is saved of this is small against a chunk's steps, except with many devices and a distilled model; and the pixels
have to come from the workers, who meanwhile do nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from magi_core.cost.around import decode_bytes, decode_operations
from magi_core.cost.machines import Machine
from magi_core.cost.memory import Use, tokens_per_chunk
from magi_core.parallel.fit import device_plan
from magi_core.parallel.predict import step_time
from magi_core.parallel.worker import Decoder, Strategy
from magi_core.vae import Tiling, VAEConfig, ViTVAE
from magi_core.vae.parts import parts_of, tile_positions

WORTH = 0.02
"""Share of a chunk's time, for which workers read a VAE and give it room."""
PIXEL_RATE = 5e8
"""Bytes a second in which decoded parts come from the workers, assumed; all of them through one process."""


def decodes(
    use: Use, ranks: int, strategy: Strategy, decoder: Decoder, vae: VAEConfig, machine: Machine, room: int
) -> bool:
    """Whether ``ranks`` devices of ``room`` bytes, 0 if that is not known, are to decode."""
    if strategy.pipeline > 1 or saved(use, ranks, strategy, decoder.tiling, vae, machine) < WORTH:
        return False
    return not room or needed_bytes(use, ranks, strategy, decoder, vae) <= room


def saved(use: Use, ranks: int, strategy: Strategy, tiling: Tiling, vae: VAEConfig, machine: Machine) -> float:
    """Predicted share of a chunk's time that is saved where every device decodes a part, and not one of them all; it may be negative."""
    times, rows, columns = _latents(use, vae)
    whole = tile_positions((times, rows, columns), tiling, vae)
    slowest = max(tile_positions((*shape, columns), tiling, vae) for shape in _shapes(use, ranks, tiling, vae))
    alone = whole * _operations(vae, tiling, (times, rows, columns)) / machine.products
    pixels = times * vae.patch_length * use.height * use.width * 3 / PIXEL_RATE
    tokens = tokens_per_chunk(use.config, use.sampling, use.height, use.width)
    step = step_time(use.config.dit, use.sampling, tokens, ranks, machine, strategy).end
    steps = use.sampling.num_steps / use.sampling.window_size
    return (alone * (1 - slowest / whole) - pixels) / (step * steps + alone)


def needed_bytes(use: Use, ranks: int, strategy: Strategy, decoder: Decoder, vae: VAEConfig) -> int:
    """What a device needs that decodes too. Decoding takes the place of a pass; on one device lies the session's own VAE besides."""
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in ViTVAE(vae).parameters()) * decoder.dtype.itemsize
    columns = _latents(use, vae)[2]
    working = max(
        decode_bytes(vae, decoder.dtype, decoder.tiling, (1, vae.z_chans, *shape, columns))
        for shape in _shapes(use, ranks, decoder.tiling, vae)
    )
    plan = device_plan(use, strategy)
    return plan.total + 2 * weights + max(0, working - plan.activations)


def _operations(vae: VAEConfig, tiling: Tiling, latents: tuple[int, int, int]) -> float:
    """Of decoding a position, counted on a whole tile."""
    sides = (vae.patch_length, vae.patch_size, vae.patch_size)
    tile = [min(size, window // side) for size, window, side in zip(latents, tiling.window, sides, strict=True)]
    return decode_operations(vae, tiling, *tile) / tile_positions(tile, tiling, vae)


def _latents(use: Use, vae: VAEConfig) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a chunk."""
    return use.sampling.chunk_width, use.height // vae.patch_size, use.width // vae.patch_size


def _shapes(use: Use, ranks: int, tiling: Tiling, vae: VAEConfig) -> Sequence[tuple[int, int]]:
    """Latent frames and rows of the parts, each once."""
    parts = parts_of(*_latents(use, vae)[:2], tiling, vae, ranks)
    return sorted({(part.times[1] - part.times[0], part.rows[1] - part.rows[0]) for part in parts})
