"""Encoding and decoding in overlapping windows, so that any size and length fits (spec section 12).

Notable:
- The two directions blend differently, and both differences are part of the numbers: encoding blends with neighbours that are
  blended already, decoding with the neighbours as they were decoded. Tiles are blended where they lie, so that is a matter of order.
- Without temporal overlap, decoding is the same whether the latents come at once or in pieces of whole tiles.
- Tiles of one shape are computed together, as many as memory allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.vae.config import VAEConfig
from magi_core.vae.vit import ViTVAE

Index = tuple[int, int, int]
"""Place of a tile along time, height and width."""

TIME = 2
"""The first of the three axes of a video or latent that are tiled."""

UNTILED = 100_000
"""Tile size that stands for "the whole side"."""
BATCH_BYTES = 1 << 30
"""What computing a batch of tiles may take beside the weights. Eight of the release's tiles need 0.6 GB in bfloat16."""
WIDTHS = 12
"""Values per token, in widths of the network, that a block holds at its peak: x, the MLP's two wide rows, what the norm made."""


@dataclass(frozen=True)
class Tiling:
    """How a video is cut into windows. Sizes in pixels and frames; the defaults are the release's."""

    frames: int = 12
    height: int | None = 256
    """Rows of a tile; None: the whole height."""
    width: int | None = 256
    """Columns of a tile; None: the whole width."""
    spatial_overlap: float = 0.25
    """Part of a tile, 0..1, that it shares with the next one in space."""
    temporal_overlap: float = 0.0
    """Part of a tile, 0..1, that it shares with the next one in time."""
    single_frame_rule: bool = True
    """A tile of one latent frame decodes to one frame: 4 latent frames with 12-frame tiles give 12 + 1 frames. A VAE whose
    window is one latent frame needs False, or each of them would lose its other frames."""
    tiles_per_batch: int = 8
    """Tiles of the same size that are computed together at most; fewer where they are large (see ``batch_limit``)."""

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "tiles_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MagiError(f"tiling: {name} is {value}; it must be at least 1")
        for name in ("spatial_overlap", "temporal_overlap"):
            if not 0 <= getattr(self, name) < 1:
                raise MagiError(f"tiling: {name} is {getattr(self, name)}; it must be at least 0 and less than 1")

    @property
    def window(self) -> Index:
        """Size of a tile in frames, rows and columns."""
        return self.frames, self.height or UNTILED, self.width or UNTILED

    @property
    def overlaps(self) -> tuple[float, float, float]:
        """Part of a tile that the next one shares, along time, height and width."""
        return self.temporal_overlap, self.spatial_overlap, self.spatial_overlap


def tiling_for(config: VAEConfig) -> Tiling:
    """The tiling that a VAE was made for: the release's, or windows of one latent frame where the VAE knows no more."""
    if config.video_length == config.patch_length:
        return Tiling(frames=config.patch_length, single_frame_rule=False, tiles_per_batch=64)
    return Tiling()


@torch.no_grad()
def encode_tiled(vae: ViTVAE, video: Tensor, tiling: Tiling) -> Tensor:
    """Latents [N, C, T/4, H/8, W/8] of a video [N, 3, T, H, W] in -1..1. A last tile of one frame gives one latent frame.

    Raises MagiError where height and width are no multiples of the patch, a tile would have a length that is neither 1 nor a
    multiple of the patch, or the tiling does not fit the patch.
    """
    vae.check_frames(video)
    window = latent_window(tiling, vae.config)
    strides = strides_of(tiling.window, tiling.overlaps)
    _check_length(video.shape[TIME], tiling.frames, strides[0], vae.config.patch_length)
    cut = _cut(video, tiling.window, strides)
    limit = batch_limit(vae, _positions(cut) // vae.config.patch_volume, tiling)
    tiles = _map_batched(vae.encode, cut, limit)
    extents = shared_by_tiles(window, tiling.overlaps)
    for index in tiles:  # from the first on: its neighbours are blended already
        _blend_with_neighbours(tiles, index, extents)
    return _assemble(tiles, window, extents)


@torch.no_grad()
def decode_tiled(vae: ViTVAE, latent: Tensor, tiling: Tiling) -> Tensor:
    """Frames [N, 3, T, H, W], nominally in -1..1, of latents [N, C, T, H, W]; see ``Tiling.single_frame_rule`` for T.

    Raises MagiError where the latents do not fit the VAE or the tiling does not fit the patch.
    """
    window = latent_window(tiling, vae.config)
    cut = _cut(latent, window, strides_of(window, tiling.overlaps))
    decode = vae.decode if tiling.single_frame_rule else vae.decode_all
    tiles = _map_batched(decode, cut, batch_limit(vae, _positions(cut), tiling))
    extents = shared_by_tiles(tiling.window, tiling.overlaps)
    for index in reversed(tiles):  # from the last on: its neighbours are still as they were decoded
        _blend_with_neighbours(tiles, index, extents)
    return _assemble(tiles, tiling.window, extents)


def batch_limit(vae: ViTVAE, positions: int, tiling: Tiling) -> int:
    """How many tiles of so many latent positions are computed at once: ``tiles_per_batch``, fewer where they need over BATCH_BYTES.

    Counted from sizes alone, not from what is free at the moment, so the same video has the same pixels whenever it is decoded.
    """
    tile = positions * vae.config.embed_dim * vae.dtype.itemsize * WIDTHS
    return max(1, min(tiling.tiles_per_batch, BATCH_BYTES // max(1, tile)))


def latent_window(tiling: Tiling, config: VAEConfig) -> Index:
    """Size of a tile in latent positions; tile and overlap must be whole patches, or the grids of the tiles would not meet."""
    patch = (config.patch_length, config.patch_size, config.patch_size)
    names = ("frames", "height", "width")
    for name, size, overlap, step in zip(names, tiling.window, tiling.overlaps, patch, strict=True):
        if size != UNTILED and (size % step or size * overlap % step):
            raise MagiError(
                f"tiling: {name} {size} with an overlap of {overlap} does not fit the VAE; "
                f"the tile and its overlapping part ({size * overlap:g}) must be multiples of {step}"
            )
    t, h, w = (size // step for size, step in zip(tiling.window, patch, strict=True))
    return t, h, w


def strides_of(window: Index, overlaps: tuple[float, float, float]) -> Index:
    """From where one tile begins to where the next one does."""
    t, h, w = (int(size * (1 - overlap)) for size, overlap in zip(window, overlaps, strict=True))
    return t, h, w


def shared_by_tiles(window: Index, overlaps: tuple[float, float, float]) -> Index:
    """How far each tile reaches into the next one."""
    t, h, w = (int(size * overlap) for size, overlap in zip(window, overlaps, strict=True))
    return t, h, w


def _check_length(frames: int, window: int, stride: int, patch: int) -> None:
    for start in range(0, frames, stride):
        length = min(window, frames - start)
        if length != 1 and length % patch:
            raise MagiError(
                f"a video of {frames} frames leaves a last window of {length} frames, which the VAE cannot encode; "
                f"trim it to {frames - frames % patch} frames (a multiple of {patch})"
            )


def _cut(x: Tensor, window: Index, strides: Index) -> dict[Index, Tensor]:
    """The tiles by their place, in row-major order; those at the far borders are smaller."""
    starts = [range(0, size, stride) for size, stride in zip(x.shape[TIME:], strides, strict=True)]
    return {
        (f // strides[0], i // strides[1], j // strides[2]): x[
            :, :, f : f + window[0], i : i + window[1], j : j + window[2]
        ]
        for f, i, j in product(*starts)
    }


def _positions(tiles: dict[Index, Tensor]) -> int:
    """In the largest tile, which is the first, with all items of the batch."""
    first = tiles[0, 0, 0]
    return len(first) * prod(first.shape[TIME:])


def _map_batched(function: Callable[[Tensor], Tensor], tiles: dict[Index, Tensor], limit: int) -> dict[Index, Tensor]:
    """``function`` of every tile, tiles of equal shape up to ``limit`` at once; the order of the tiles is kept."""
    by_shape: dict[torch.Size, list[Index]] = {}
    for index, tile in tiles.items():
        by_shape.setdefault(tile.shape, []).append(index)
    results: dict[Index, Tensor] = {}
    for indices in by_shape.values():
        for start in range(0, len(indices), limit):
            batch = indices[start : start + limit]
            outputs = function(torch.cat([tiles[index] for index in batch]))
            results |= zip(batch, outputs.chunk(len(batch)), strict=True)
    return {index: results[index] for index in tiles}


def _blend_with_neighbours(tiles: dict[Index, Tensor], index: Index, extents: Index) -> None:
    """Fade the tile at ``index`` into the tiles before it in time, above it and to its left, in place and in this order."""
    for axis in range(3):
        if index[axis] and extents[axis]:
            f, i, j = (place - (a == axis) for a, place in enumerate(index))
            _blend(tiles[f, i, j], tiles[index], TIME + axis, extents[axis])


def _blend(before: Tensor, after: Tensor, axis: int, extent: int) -> None:
    """Let the first ``extent`` slices of ``after`` along ``axis`` fade over from the last ones of ``before``.

    The sum is made in float32 and rounded once; slice y weighs y / extent.
    """
    extent = min(before.shape[axis], after.shape[axis], extent)
    y = torch.arange(extent, dtype=torch.float32, device=after.device).view(-1, *[1] * (after.ndim - 1 - axis))
    here, there = y / extent, (extent - y) / extent
    overlap = after.narrow(axis, 0, extent)
    overlap.copy_((before.narrow(axis, before.shape[axis] - extent, extent) * there).add_(overlap * here))


def _assemble(tiles: dict[Index, Tensor], window: Index, extents: Index) -> Tensor:
    """Crop every tile to the part that the next one does not blend over, and put them together."""
    first, pitch = tiles[0, 0, 0], [size - extent for size, extent in zip(window, extents, strict=True)]
    last = max(tiles)
    sides = [
        sum(min(tiles[_on(axis, n)].shape[TIME + axis], pitch[axis]) for n in range(last[axis] + 1))
        for axis in range(3)
    ]
    channels_last = first.is_contiguous(memory_format=torch.channels_last_3d)
    whole = torch.empty(
        *first.shape[:TIME],
        *sides,
        dtype=first.dtype,
        device=first.device,
        memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format,
    )
    for index, tile in tiles.items():
        part, place = tile, whole
        for axis in range(3):
            length = min(tile.shape[TIME + axis], pitch[axis])
            part = part.narrow(TIME + axis, 0, length)
            place = place.narrow(TIME + axis, index[axis] * pitch[axis], length)
        place.copy_(part)
    return whole


def _on(axis: int, n: int) -> Index:
    """The n-th tile along an axis."""
    f, i, j = (n if a == axis else 0 for a in range(3))
    return f, i, j
