"""What the benchmark of a GPU measures with: models of random weights, windows in the middle of a long video, a clock."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magi_core.checkpoint.load import empty_dit
from magi_core.config import DiTConfig, MagiConfig, Sampling
from magi_core.denoise import Window, dispatch
from magi_core.denoise.schedule import Schedule, step_embedding
from magi_core.kernels import attention
from magi_core.memory.streaming import Place, stream
from magi_core.model import KVCache, MagiDiT
from magi_core.presets import PRESETS
from magi_core.text.assembly import null_caption
from magi_core.text.caption import Caption
from magi_core.vae import VAEConfig

WORDS = 200
"""Of a prompt."""
MIDDLE = 20
"""A chunk number in the middle of a long video."""


@dataclass(frozen=True)
class Scale:
    """What is measured, and where."""

    device: torch.device
    base: MagiConfig
    distilled: MagiConfig
    large: MagiConfig
    size: tuple[int, int]
    """Height and width in pixels, of the smaller model."""
    large_size: tuple[int, int]
    attention_tokens: tuple[int, ...]
    vae: VAEConfig
    repeats: int
    reference_seconds: float | None
    """Of the public reference for a guided step on the same machine."""

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


class NeedsCuda(Exception):
    """A figure that means nothing without a CUDA device."""


def full(device: torch.device, reference_seconds: float) -> Scale:
    return Scale(
        device, PRESETS["4.5b"], PRESETS["4.5b-distill"], PRESETS["24b"], (720, 720), (720, 1280), (9360, 12150, 21600),
        VAEConfig(), 3, reference_seconds,
    )  # fmt: skip


def tiny(device: torch.device) -> Scale:
    dit = DiTConfig(
        num_layers=3, hidden_size=96, ffn_hidden_size=192, num_attention_heads=6, num_query_groups=2, kv_channels=16,
        caption_channels=16, caption_max_length=60,
    )  # fmt: skip
    base = replace(PRESETS["4.5b"], dit=dit)
    distilled = replace(PRESETS["4.5b-distill"], dit=replace(dit, distill=True))
    vae = VAEConfig(embed_dim=256, depth=1, num_heads=2)
    return Scale(device, base, distilled, base, (64, 64), (64, 96), (24,), vae, 1, None)


def random_model(config: DiTConfig, device: torch.device, place: Place = "resident", *, fp8: bool = False) -> MagiDiT:
    """A model with random weights; all layers have those of the first of their kind, so that main memory fills quickly."""
    model = empty_dit(config, attend=attention("auto", device), fp8=fp8)
    streamed = stream(model) if place == "streamed" else None
    model = model.to_empty(device=device).requires_grad_(False).eval()
    _fill(dict(model.named_parameters()))
    if streamed is not None:
        known: list[dict[str, Tensor]] = []
        for i in range(config.num_layers):
            layer = streamed.host(i)
            like = next((o for o in known if _kind(o) == _kind(layer)), None)
            if like is None:
                _fill(layer)
                known.append(layer)
            else:
                for name, tensor in layer.items():
                    tensor.copy_(like[name])
    return model


def _kind(layer: dict[str, Tensor]) -> list[tuple[str, torch.dtype]]:
    return [(name, tensor.dtype) for name, tensor in layer.items()]


def _fill(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if name.endswith("_scale"):
            tensor.fill_(1e-3)
        elif tensor.dtype.itemsize == 1:
            tensor.copy_(torch.randint(-8, 8, (tensor.shape[-1],), device=tensor.device).float().to(tensor.dtype))
        else:
            tensor.normal_(std=0.02)


def window_of(
    model: MagiDiT, sampling: Sampling, size: tuple[int, int], j: int, device: torch.device
) -> tuple[Window, KVCache]:
    """Step ``j`` of a stage in the middle of a long video, and the keys and values that it reads."""
    schedule, config = Schedule.of(sampling), model.config
    step = schedule.step(0, 2 * MIDDLE, MIDDLE * schedule.stage_steps + j)
    height, width = (side // 8 for side in size)
    first, chunks = step.chunks.start - step.extra, len(step.chunks) + step.extra
    tokens = sampling.chunk_width * (height // config.patch_size) * (width // config.patch_size)
    null = null_caption(model.null_caption)
    caption = Caption(torch.randn(min(WORDS, 60), config.caption_channels, device=device), torch.ones(min(WORDS, 60)))
    cache, groups = KVCache(), 2 * config.kv_channels
    if model.videodit_blocks.layers.on_host:
        cache.keep_on_host()
    for chunk in range(min(start for start, _ in step.kv_chunks), first):
        for layer in range(config.num_layers):
            rows = torch.zeros(tokens, config.num_query_groups, groups, dtype=config.params_dtype, device=device)
            cache.write(layer, chunk, rows)
    extra = int(step.extra)
    window = Window(
        x=torch.randn(1, config.latent_channels, chunks * sampling.chunk_width, height, width, device=device),
        times=(sampling.clean_t,) * extra + tuple(schedule.times[done] for done in step.steps),
        text=(null,) * extra + (caption,) * len(step.chunks),
        null=null,
        first_chunk=first,
        kv_chunks=step.kv_chunks,
        extra=step.extra,
        near_clean=step.near_clean,
        step_embedding=step_embedding(sampling.num_steps, step.interval) if config.distill else None,
        write_chunks=extra,
    )
    return window, cache


def seconds_of(work: Callable[[], object], scale: Scale, repeats: int | None = None) -> float:
    """Median seconds after one call to warm up."""
    taken = []
    for _ in range((repeats or scale.repeats) + 1):
        wait(scale)
        begun = time.perf_counter()
        work()
        wait(scale)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


def wait(scale: Scale) -> None:
    """Until the device has done all it was given."""
    if scale.cuda:
        torch.cuda.synchronize(scale.device)


def step_seconds(model: MagiDiT, sampling: Sampling, size: tuple[int, int], scale: Scale, j: int = 1) -> float:
    window, cache = window_of(model, sampling, size, j, scale.device)
    return seconds_of(lambda: dispatch(model, sampling, window, cache), scale)


def one_pass(model: MagiDiT, config: MagiConfig, size: tuple[int, int], scale: Scale) -> None:
    """A full window's pass with text, none of the other passes of guidance."""
    window, cache = window_of(model, config.sampling, size, 1, scale.device)
    text_alone = replace(config.sampling, text_scales=(1.0,) * 5, prev_chunk_scales=(1.0,) * 5)
    dispatch(model, text_alone, window, cache)
    wait(scale)


def clear(scale: Scale) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if scale.cuda:
        torch.cuda.empty_cache()
