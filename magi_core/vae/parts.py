"""Parts of a video that can be decoded apart, so that several devices decode one chunk.

Notable:
- Tiles do not overlap in time, so that is how a video is parted first, and then into bands of rows of tiles.
- A band is decoded with the row of tiles above it, which its own fade over from, and with what its last row of tiles begins of the next
  one; both are cut off. So parts are put together as pixels, in bytes, and need nothing of each other.
- Pixels are those of the whole up to rounding: tiles are computed in other batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
from torch import Tensor

from magi_core.vae.chunks import decode_frames
from magi_core.vae.config import VAEConfig
from magi_core.vae.tiling import Tiling, latent_window, shared_by_tiles, strides_of
from magi_core.vae.vit import ViTVAE


@dataclass(frozen=True)
class Part:
    """What is decoded, and what of it counts."""

    times: tuple[int, int]
    """Latent frames, [start, end)."""
    rows: tuple[int, int]
    """Latent rows, [start, end)."""
    above: int
    """Rows of pixels at its top that belong to another part."""
    height: int
    """Rows of pixels that count."""


def parts_of(times: int, rows: int, tiling: Tiling, config: VAEConfig, count: int) -> list[Part]:
    """At most ``count`` parts of latents of so many frames and rows, as even as tiles allow; in order of time, then from the top.

    Raises MagiError where the tiling does not fit the VAE.
    """
    window = latent_window(tiling, config)
    strides, shared = strides_of(window, tiling.overlaps), shared_by_tiles(tiling.window, tiling.overlaps)
    tile_times = -(-times // window[0]) if not tiling.temporal_overlap else 1
    tops = range(0, rows, strides[1])
    counted = [
        min((min(rows, top + window[1]) - top) * config.patch_size, tiling.window[1] - shared[1]) for top in tops
    ]
    spans = _runs(tile_times, count)
    bands = _runs(len(tops), max(1, count // len(spans)))
    found = []
    for first, end in spans:
        time = first * window[0], times if end == tile_times else end * window[0]
        for low, high in bands:
            top = max(0, low - 1) if shared[1] else low
            bottom = rows if high == len(tops) else min(rows, tops[high - 1] + window[1])
            found.append(Part(time, (tops[top], bottom), sum(counted[top:low]), sum(counted[low:high])))
    return found


def decode_part(vae: ViTVAE, latents: Tensor, scale_factor: float, tiling: Tiling, part: Part) -> npt.NDArray[np.uint8]:
    """uint8 frames [T, part.height, W, 3] of a part of latents [1, C, t, h, w]; see ``decode_frames``."""
    cut = latents[:, :, slice(*part.times), slice(*part.rows)]
    return decode_frames(vae, cut, scale_factor, tiling)[:, part.above : part.above + part.height]


def joined(decoded: Sequence[tuple[Part, npt.NDArray[np.uint8]]]) -> npt.NDArray[np.uint8]:
    """The whole, of all parts in their order."""
    times = dict.fromkeys(part.times for part, _ in decoded)
    return np.concatenate(
        [np.concatenate([frames for part, frames in decoded if part.times == time], axis=1) for time in times]
    )


def tile_positions(latents: Sequence[int], tiling: Tiling, config: VAEConfig) -> int:
    """How many positions the tiles of latents of a size (frames, rows, columns) hold: those that tiles share count several times."""
    window = latent_window(tiling, config)
    strides = strides_of(window, tiling.overlaps)
    axes = zip(latents, window, strides, strict=True)
    return prod(sum(min(tile, size - start) for start in range(0, size, step)) for size, tile, step in axes)


def _runs(items: int, count: int) -> list[tuple[int, int]]:
    """``items`` in a row as at most ``count`` runs [start, end) of nearly equal length."""
    count = min(items, count)
    return [(items * i // count, items * (i + 1) // count) for i in range(count)]
