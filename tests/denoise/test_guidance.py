"""Guided velocities against recorded calls, cache contents included, and what may be left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise.guidance import dispatch, guidance_weights, remember
from magi_core.denoise.window import Window
from magi_core.golden import Golden, compare
from magi_core.model import KVCache, MagiDiT
from magi_core.model.dit import Pass
from magi_core.text.assembly import null_caption
from magi_core.text.caption import Caption
from magi_core.verify.sampling import dispatched


def test_the_cache_holds_what_the_recorded_calls_left_in_it(golden: Golden) -> None:
    """The velocities of these calls are compared by ``magi verify``."""
    assert golden.family("dispatcher")
    for case in golden.family("dispatcher"):
        for i, (_, cache) in enumerate(dispatched(golden, case)):
            for name in case.outputs:
                if name.startswith(f"c{i}.cache_layer0_chunk"):
                    chunk = int(name.rpartition("chunk")[2])
                    error, allowed = (
                        compare(cache.read(0, chunk, chunk + 1)[0], case.outputs[name]),
                        case.tolerance[name],
                    )
                    assert error[0] <= allowed.max_abs and error[1] <= allowed.rel_rms, (case.id, name, error)


def test_weights_add_up_and_follow_the_time() -> None:
    weights = guidance_weights(Sampling(), [0.0, 0.0217, 0.05, 0.1000000089, 0.3000000119, 0.99])
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(6))
    assert weights[2].tolist() == [7.5, 7.5, 7.5, 7.5, 0, 0]
    assert weights[0].tolist() == [-0.5, -0.5, -0.5, -0.5, 0, 0]


def test_a_pass_without_weight_is_left_out_and_changes_nothing(tiny: MagiDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(prev_chunk_scales=(1.5, 1.5, 1.0, 1.0, 1.0), text_scales=(7.5, 1.5, 0.0, 1.0, 1.0))
    null = null_caption(tiny.null_caption)
    text, latents = Caption(torch.randn(5, 4), torch.ones(5)), torch.randn(1, 2, 8, 4, 4)

    passes: list[tuple[bool, int]] = []
    start = tiny.start

    def counted(x: Tensor, *arguments: Any, **options: Any) -> Pass:
        passes.append((options["dropped"], len(x)))
        return start(x, *arguments, **options)

    monkeypatch.setattr(tiny, "start", counted)

    def velocity(times: tuple[float, ...]) -> tuple[Tensor, list[tuple[bool, int]]]:
        passes.clear()
        x = latents[:, :, : 2 * len(times)]
        kv = tuple((0, i + 1) for i in range(len(times)))
        window = Window(x, times, (text,) * len(times), null, 0, kv)
        return dispatch(tiny, sampling, window, KVCache()), list(passes)

    assert velocity((0.01,))[1] == [(False, 1), (True, 1)]  # the first chunk with context is the first chunk alone
    assert velocity((0.05,))[1] == [(False, 1), (True, 1)]  # p = s: the context pass has no weight
    assert velocity((0.2,))[1] == [(True, 1)]  # only context
    assert velocity((0.5,))[1] == [(False, 1)]  # only text
    together, made = velocity((0.5, 0.2, 0.05, 0.01))
    assert made == [(False, 1), (True, 1), (True, 2)]  # two chunks alone
    # The leftmost chunk sees only itself, so what its neighbours need must not show in it.
    torch.testing.assert_close(together[:, :, :2], velocity((0.5,))[0])


@torch.no_grad()
def three_passes(model: MagiDiT, sampling: Sampling, window: Window, cache: KVCache) -> Tensor:
    """The rule as it is written (spec 7.1): every chunk in every pass, nothing kept from pass to pass."""
    chunks, tokens = len(window.times), 2 * 2 * 2

    def model_pass(captions: tuple[Caption, ...], *, dropped: bool, **options: Any) -> Tensor:
        y = torch.stack([caption.padded(60).embedding for caption in captions])
        mask = torch.stack([caption.padded(60).mask for caption in captions])
        return model(x=options.pop("x", window.x), y=y, y_mask=mask, dropped=dropped, **options)

    together: dict[str, Any] = {
        "t": torch.tensor([window.times]),
        "chunk_index": range(window.first_chunk, window.first_chunk + chunks),
        "kv_range": [(start * tokens, end * tokens) for start, end in window.kv_chunks],
        "cache": cache,
    }
    null = (window.null,) * chunks
    text = model_pass(window.text, dropped=False, **together)
    context = model_pass(null, dropped=True, **together, write_tokens=window.write_chunks * tokens)
    apart = window.x.unflatten(2, (chunks, 2))[0].transpose(0, 1)
    times = torch.tensor(window.times)[:, None]
    alone = model_pass(null, x=apart, dropped=True, t=times, chunk_index=[0], kv_range=[(0, tokens)])
    alone = alone.transpose(0, 1).flatten(1, 2)[None]
    weights = guidance_weights(sampling, window.times).repeat_interleave(2, dim=1)[..., None, None]
    velocity: Tensor = weights[0] * alone + weights[1] * context + weights[2] * text
    return velocity


@pytest.mark.parametrize("times", [(0.5, 0.2, 0.05), (0.4, 0.35, 0.31), (0.01, 0.005, 0.0), (0.9, 0.1, 0.02)])
@pytest.mark.parametrize("first", [0, 1])
def test_what_is_left_out_or_kept_changes_nothing(tiny: MagiDiT, times: tuple[float, ...], first: int) -> None:
    """From the video's first chunk on, and behind a clean chunk that goes along with a window."""
    generator = torch.Generator().manual_seed(first)
    null = null_caption(tiny.null_caption)
    text = tuple(Caption(torch.randn(n, 4, generator=generator), torch.ones(n)) for n in (3, 5))
    latents = torch.randn(1, 2, 10, 4, 4, generator=generator)
    window = Window(latents[:, :, :6], times, (text[0], text[0], text[1]), null, 0, ((0, 1), (0, 2), (1, 3)))
    caches = KVCache(), KVCache()
    if first:
        clean = Window(latents[:, :, 8:], (0.9999,), (null,), null, 0, ((0, 1),))
        for cache in caches:
            remember(tiny, Sampling(), clean, cache)
        window = Window(
            latents[:, :, :8],
            (0.9999, *times),
            (null, *window.text),
            null,
            1,
            ((0, 2), (0, 3), (1, 4), (2, 5)),
            extra=True,
            write_chunks=1,
        )
    for _ in range(2):  # the second time with what the first one kept
        given = replace(window, x=window.x + 0)
        expected = three_passes(tiny, Sampling(), given, caches[0])[:, :, 2 * first :]
        torch.testing.assert_close(
            dispatch(tiny, Sampling(), given, caches[1])[:, :, 2 * first :], expected, rtol=0, atol=2e-5
        )
    for name, rows in caches[0].state().items():
        torch.testing.assert_close(caches[1].state()[name], rows, rtol=0, atol=1e-5)
