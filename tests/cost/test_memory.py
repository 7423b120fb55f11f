"""The plan is what a real run holds, and where it does not fit the advice does."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from magi_core.config import DiTConfig, MagiConfig, Sampling
from magi_core.cost import memory as planner
from magi_core.cost.around import decode_bytes, encode_bytes
from magi_core.cost.memory import (
    Use,
    choose_place,
    fullest_step,
    plan_memory,
    proposals,
    refusal,
    weight_bytes,
)
from magi_core.cost.peak import peak_bytes
from magi_core.denoise.schedule import Schedule
from magi_core.errors import MagiError
from magi_core.model import KVCache, MagiDiT
from magi_core.presets import PRESETS
from magi_core.training.precision import is_fast_in_bfloat16
from magi_core.vae import Tiling, VAEConfig, ViTVAE, decode_tiled, encode_tiled, video_to_frames

NARROW = DiTConfig(
    num_layers=3,
    hidden_size=96,
    ffn_hidden_size=384,
    num_attention_heads=6,
    num_query_groups=2,
    kv_channels=16,
    caption_channels=8,
    caption_max_length=8,
    params_dtype=torch.float32,
)
GB = 1_000_000_000


def allocated(run: Any) -> int:
    """The most bytes that ``run`` had from torch's CPU allocator at once, as the profiler saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [1, 4])
def test_activations_are_what_a_run_allocates(window: int, dtype: torch.dtype) -> None:
    dit = replace(NARROW, params_dtype=dtype)
    sampling = Sampling(window_size=window)
    step, past = fullest_step(sampling, 96)
    side, tokens = 128, 6 * 8 * 8
    planned = plan_memory(Use(MagiConfig(dit=dit), side, side, sampling)).activations
    model, cache = MagiDiT(dit).requires_grad_(False), KVCache()
    count = len(step.kv_chunks)
    first = step.chunks.stop - count
    oldest = min(start for start, _ in step.kv_chunks)
    for chunk in range(oldest, first):
        for layer in range(dit.num_layers):
            cache.write(layer, chunk, torch.zeros(tokens, 2, 32, dtype=dtype))
    x, t, y = torch.zeros(1, 16, 6 * count, 16, 16), torch.zeros(1, count), torch.zeros(count, 8, 8)
    ranges = [(start * tokens, end * tokens) for start, end in step.kv_chunks]
    chunks = range(first, first + count)

    def run() -> None:
        model(x, t, y, y[..., 0] == 0, dropped=True, chunk_index=chunks, kv_range=ranges, cache=cache)

    with torch.no_grad():
        assert planned == pytest.approx(allocated(run), rel=0.1)
    assert past == {1: 4, 4: 1}[window]


LIKE_A_GPU = pytest.mark.skipif(
    not is_fast_in_bfloat16(torch.device("cpu")),
    reason="torch's bfloat16 kernels for CPUs without AVX-512 hold buffers that those of a GPU do not",
)
VAE = VAEConfig(video_size=64, video_length=8, embed_dim=128, depth=2, num_heads=4, use_final_proj=True)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=LIKE_A_GPU)])
@pytest.mark.parametrize(
    "tiling",
    [Tiling(height=64, width=64), Tiling(height=192, width=192), Tiling(height=96, width=96, tiles_per_batch=2)],
)
def test_tiles_hold_what_is_counted(tiling: Tiling, dtype: torch.dtype) -> None:
    vae = ViTVAE(VAE).to(dtype).requires_grad_(False)
    latents, video = torch.zeros(1, 16, 6, 24, 24), torch.zeros(1, 3, 24, 192, 192)

    def decode() -> None:
        video_to_frames(decode_tiled(vae, latents, tiling))

    decoding, encoding = allocated(decode), allocated(lambda: encode_tiled(vae, video, tiling))
    assert decode_bytes(VAE, dtype, tiling, tuple(latents.shape)) == pytest.approx(decoding, rel=0.15)
    counted = encode_bytes(VAE, dtype, tiling, tuple(video.shape))
    assert counted - video.nbytes == pytest.approx(encoding, rel=0.15)


def test_what_is_let_go_of_is_not_counted() -> None:
    def run() -> None:
        first = torch.empty(1000)
        second = first + 1
        del first
        part = (second * 2).view(10, 100)[2:]
        assert part.shape == (8, 100)
        torch.empty(250)

    assert peak_bytes(run) == 9000


def test_large_videos_are_counted_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    use = replace(Use.of(PRESETS["nano"]), height=1024, width=1536)
    whole = plan_memory(use).activations
    monkeypatch.setattr(planner, "COUNTED_PIXELS", use.height * use.width // 4)
    assert plan_memory(use).activations == pytest.approx(whole, rel=0.03)


def test_weights_and_cache_of_the_release() -> None:
    for name, height, width, weights, cache in (("4.5b", 720, 720, 8.96, 1.69), ("24b", 720, 1280, 47.88, 4.25)):
        plan = plan_memory(replace(Use.of(PRESETS[name]), height=height, width=width))
        assert (plan.weights / GB, plan.kv_cache / GB) == pytest.approx((weights, cache), abs=0.02)
    outside, layers = weight_bytes(PRESETS["4.5b"].dit)
    streamed = plan_memory(replace(Use.of(PRESETS["4.5b"]), weights="streamed"))
    cache = plan_memory(Use.of(PRESETS["4.5b"])).kv_cache
    assert (streamed.weights, streamed.slots, streamed.host) == (outside, 2 * max(layers), sum(layers) + cache)
    assert streamed.kv_cache == cache // 34
    assert streamed.total < 4.5 * GB
    wide = replace(Use.of(PRESETS["24b"]), weights="streamed")
    assert plan_memory(wide).total < 11 * GB
    halved = plan_memory(replace(Use.of(PRESETS["4.5b"]), fp8=True))
    assert halved.weights < 0.6 * (outside + sum(layers))
    no_ranges = replace(PRESETS["4.5b"].sampling, noise2clean_kvrange=())
    assert fullest_step(no_ranges, 96)[1] == 3  # the last of four chunks sees the others


@pytest.mark.parametrize("sampling", [Sampling(clean_chunk_kvrange=12), Sampling(noise2clean_kvrange=(12, 1, 1, 1))])
def test_as_many_keys_are_planned_as_the_farthest_look_needs(sampling: Sampling) -> None:
    steps = Schedule.of(sampling).run(0, 40)
    held = max(step.chunks.start - min(start for start, _ in step.kv_chunks) for step in steps)
    assert fullest_step(sampling, 96)[1] == held > 4


def test_small_windows_hold_three_passes_where_layers_are_streamed() -> None:
    small, large = (replace(Use.of(PRESETS["4.5b"]), height=side, width=side) for side in (320, 720))
    for use, passes in ((small, 2), (large, 0)):
        resident, streamed = (
            plan_memory(replace(use, weights=place)).activations for place in ("resident", "streamed")
        )
        tokens = len(fullest_step(use.sampling, 96)[0].kv_chunks) * planner.tokens_per_chunk(
            use.config, use.sampling, use.height, use.width
        )
        assert streamed - resident == passes * tokens * 3072 * 2


def test_advice_fits_and_is_near() -> None:
    use = replace(Use.of(PRESETS["24b"]), height=720, width=1280)
    resident, streamed = (plan_memory(replace(use, weights=place)).total for place in ("resident", "streamed"))
    assert streamed < resident - 40 * GB
    assert choose_place(use, "auto", resident) == "resident"
    assert choose_place(use, "auto", resident - 1) == choose_place(use, "auto", streamed) == "streamed"
    assert choose_place(use, "streamed", resident) == "streamed"
    for free in (streamed - 1, resident - 1):
        plans = list(proposals(use, free))
        assert plans
        assert all(plan.fits(free) for plan in plans)
    with pytest.raises(
        MagiError, match=r"are free; what would fit: .* x \d+, weights streamed, window .* of main memory"
    ):
        choose_place(use, "auto", streamed - 1)
    with pytest.raises(MagiError, match=r"weights resident, window 4: .* are needed"):
        choose_place(use, "resident", streamed)
    assert "use a smaller model" in str(refusal(use, GB))
    assert choose_place(replace(Use.of(PRESETS["nano"]), gpu=False), "auto", 0) == "resident"
