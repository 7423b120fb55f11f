"""A video decoded in parts is the video."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_core.vae import Tiling, VAEConfig, ViTVAE
from magi_core.vae.chunks import decode_frames
from magi_core.vae.parts import decode_part, joined, parts_of, tile_positions

TILES = Tiling(frames=8, height=16, width=16, single_frame_rule=False)
"""2 x 4 x 4 latents, of which each shares 1 with the next in space."""


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(2, 14), st.integers(1, 9), st.sampled_from([0.0, 0.25, 0.5]))
def test_parts_are_the_whole(tiny_vae: ViTVAE, times: int, rows: int, count: int, overlap: float) -> None:
    tiling = replace(TILES, spatial_overlap=overlap)
    latents = torch.randn(1, tiny_vae.config.z_chans, times, rows, 5, generator=torch.Generator().manual_seed(rows))
    whole = decode_frames(tiny_vae, latents, 0.5, tiling)
    parts = parts_of(times, rows, tiling, tiny_vae.config, count)
    assert 1 <= len(parts) <= count
    found = joined([(part, decode_part(tiny_vae, latents, 0.5, tiling, part)) for part in parts])
    assert found.shape == whole.shape and np.abs(found.astype(int) - whole).max() <= 1


@pytest.mark.parametrize(("count", "most"), [(1, 8), (2, 4), (4, 3), (8, 2)])
def test_a_chunk_of_the_release_is_shared_evenly(count: int, most: int) -> None:
    """720 rows: 4 rows of tiles twice, one after the other in time; a band also has that above it."""
    tiling = Tiling(single_frame_rule=False)
    parts = parts_of(6, 90, tiling, VAEConfig(), count)
    assert len(parts) == count and sum(part.height for part in parts) == 720 * min(count, 2)
    sizes = [(part.times[1] - part.times[0], part.rows[1] - part.rows[0], 32) for part in parts]
    positions = [tile_positions(size, tiling, VAEConfig()) / (3 * 32 * (32 + 8)) for size in sizes]
    assert max(positions) <= most + 1, "and the next one's beginning"


def test_whole_heights_and_overlap_in_time_are_left_together(tiny_vae: ViTVAE) -> None:
    assert len(parts_of(6, 90, replace(TILES, height=None), tiny_vae.config, 8)) == 3
    parts = parts_of(6, 8, replace(TILES, temporal_overlap=0.5), tiny_vae.config, 8)
    assert len(parts) == 3 and {part.times for part in parts} == {(0, 6)}
