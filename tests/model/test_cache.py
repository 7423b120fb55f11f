"""A cache that forgets what nobody reads gives the numbers of one that keeps everything."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_core.model import KVCache, MagiDiT
from tests.model.conftest import TINY
from tests.model.test_dit import TOKENS, batch

CHUNKS = 6


def run(model: MagiDiT, reach: int, window: int, cache: KVCache, *, forget: bool, resume_at: int = -1) -> list[Tensor]:
    """Chunk after chunk: two chunks in a pass where there are two, the first is written; every chunk sees ``reach`` chunks."""
    x, t, y, mask = batch(1, CHUNKS)
    out = []
    for first in range(CHUNKS):
        if first == resume_at:
            cache = KVCache.from_state({name: tensor.clone() for name, tensor in cache.state().items()})
        end = min(CHUNKS, first + window)
        part = x[:, :, 2 * first : 2 * end], t[:, first:end], y[first:end], mask[first:end]
        ranges = [(max(0, chunk + 1 - reach) * TOKENS, (chunk + 1) * TOKENS) for chunk in range(first, end)]
        places = range(first, end)
        out.append(model(*part, dropped=False, chunk_index=places, kv_range=ranges, cache=cache, write_tokens=TOKENS))
        if forget:
            cache.keep_from(first + 2 - reach)
            assert len(cache.chunks) < reach
    return out


@settings(deadline=None, max_examples=12)
@given(reach=st.integers(1, 5), window=st.integers(1, 3), resume_at=st.integers(1, CHUNKS - 1))
def test_a_short_cache_equals_a_whole_one(reach: int, window: int, resume_at: int) -> None:
    torch.manual_seed(0)
    model = MagiDiT(TINY).requires_grad_(False)
    whole = run(model, reach, window, KVCache(), forget=False)
    short = run(model, reach, window, KVCache(), forget=True, resume_at=resume_at)
    assert all(torch.equal(a, b) for a, b in zip(whole, short, strict=True))


@torch.no_grad()
def test_cached_chunks_are_the_chunks_themselves(tiny: MagiDiT) -> None:
    """A pass over all chunks and one that reads the first from the cache agree, if the first sees only itself."""
    x, t, y, mask = batch(1, 2)
    ranges = [(0, TOKENS), (0, 2 * TOKENS)]
    cache = KVCache()
    together = tiny(x, t, y, mask, dropped=False, chunk_index=[0, 1], kv_range=ranges, cache=cache, write_tokens=TOKENS)
    assert cache.chunks == (0,)
    alone = tiny(
        x[:, :, 2:], t[:, 1:], y[1:], mask[1:], dropped=False, chunk_index=[1], kv_range=ranges[1:], cache=cache
    )
    torch.testing.assert_close(alone, together[:, :, 2:], atol=1e-5, rtol=1e-5)
    assert cache.chunks == (0,)


def test_a_chunk_written_again_is_replaced_in_place() -> None:
    cache = KVCache()
    cache.write(0, 0, torch.zeros(3, 1, 4))
    (held,) = cache.read(0, 0, 1)
    cache.write(0, 0, torch.ones(3, 1, 4))
    assert torch.equal(held, torch.ones(3, 1, 4))
