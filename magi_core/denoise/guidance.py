"""From model passes to one velocity: three-way guidance, or the distilled model's single pass (spec 7).

Notable:
- Base models: v = (1 - p) alone + (p - s) context + s text, with scales p, s that depend on each chunk's own time. A pass whose
  weight is exactly zero for every chunk is left out, and so is a chunk in the pass where each chunk stands alone.
- The first chunk of a video sees nothing but itself anyway: with context it is what it is alone, and is computed once.
- Where layers come from host memory, the passes over a small window go through each of them together.
- Only the pass with context and null text writes keys and values, so what is remembered of a clean chunk holds no caption.
- Distilled models: one pass; once the leftmost chunk is nearly clean, its velocity is blended with that of a copy seen alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise.window import Window
from magi_core.model import KVCache, MagiDiT
from magi_core.model.dit import Pass
from magi_core.model.memo import Memo, Prompt
from magi_core.model.numbers import numbers
from magi_core.text.caption import Caption

NEAR_CLEAN_WEIGHT = 0.7
"""Share of the velocity with context where the nearly clean chunk is also seen alone (spec 7.2)."""
SHARED_TOKENS = 16_384
"""Up to so many tokens in a window, its passes share every layer that is brought from host memory. One pass over more computes for longer
than a layer takes to arrive, even on an H100; there sharing would gain nothing and hold the hidden states of three passes at once."""


@dataclass(frozen=True)
class Part:
    """A model pass that guidance adds up, or some chunks of it."""

    kind: Literal["text", "context", "alone"]
    chunks: tuple[int, ...]
    """The window's chunks that it gives a velocity for: all of them, but where each stands alone."""
    weights: tuple[float, ...]
    """Of every such chunk."""


RunParts = Callable[[MagiDiT, Window, Sequence[Part], KVCache], list[tuple[Part, Tensor]]]
"""How parts are run: gives each with its weighted velocity, as ``run_parts``."""
Dispatch = Callable[[MagiDiT, Sampling, Window, KVCache], Tensor]
"""How a window becomes a velocity; ``dispatch`` is the plain way."""
Remember = Callable[[MagiDiT, Sampling, Window, KVCache], None]
"""How keys and values of clean chunks are stored; ``remember`` is the plain way."""


@torch.no_grad()
def dispatch(model: MagiDiT, sampling: Sampling, window: Window, cache: KVCache, run: RunParts | None = None) -> Tensor:
    """Guided velocity [1, C, D * chunk_width, H, W] of a window (spec 7).

    ``cache`` holds what kv_chunks names before first_chunk, and receives write_chunks. For the slot of an ``extra`` chunk see
    ``extra_is_x``. ``run``: how the passes of a base model are run, ``run_parts`` unless told otherwise.
    """
    if sampling.cfg_number == 1:
        velocity = _distilled(model, window, cache)
    else:
        velocity = torch.zeros_like(_by_chunk(window))
        parts = guided_parts(
            sampling, window.times, window.kv_chunks, extra=window.extra, store=window.write_chunks > 0
        )
        for part, weighted in (run or run_parts)(model, window, parts, cache):
            for slot, chunk in enumerate(part.chunks):  # an index made of several would be copied to the device
                velocity[:, chunk] += weighted[:, slot]
    if extra_is_x(sampling, window):
        velocity[:, 0] = _by_chunk(window)[:, 0]
    return velocity.flatten(1, 2)[None]


def extra_is_x(sampling: Sampling, window: Window) -> bool:
    """Whether x stands for the velocity of an ``extra`` chunk; else it is the model's. Neither is of use (as in the reference, spec 14.16)."""
    return window.extra and not (sampling.cfg_number == 1 and window.near_clean)


@torch.no_grad()
def remember(model: MagiDiT, sampling: Sampling, window: Window, cache: KVCache) -> None:
    """Store keys and values of a window of clean chunks, which are told nothing: how a prefix is read (spec 8.4.1)."""
    everything = replace(window, write_chunks=len(window.times))
    _pass(model, everything, _untold(window), cache, dropped=sampling.cfg_number == 3)


def _here(cache: KVCache) -> KVCache:
    return cache


@dataclass(frozen=True)
class Runner:
    """Who runs the model: this process, unless told otherwise."""

    dispatch: Dispatch = dispatch
    remember: Remember = remember
    place: Callable[[KVCache], KVCache] = _here
    """Gives the cache that stands for the one given, where the model runs."""


def guidance_weights(sampling: Sampling, times: Sequence[float]) -> Tensor:
    """Weights [3, D] of the passes alone, context and text for chunks at ``times``; each column adds up to 1 (spec 7.1)."""
    knots = torch.tensor(sampling.cfg_t_range, dtype=torch.float32) - 1e-7
    index = torch.searchsorted(knots, torch.tensor(times, dtype=torch.float32)) - 1
    p = torch.tensor(sampling.prev_chunk_scales, dtype=torch.float32)[index]
    s = torch.tensor(sampling.text_scales, dtype=torch.float32)[index]
    return torch.stack([1 - p, p - s, s])


def guided_parts(
    sampling: Sampling, times: Sequence[float], kv_chunks: Sequence[tuple[int, int]], *, extra: bool, store: bool
) -> list[Part]:
    """The passes whose weighted sum is the guided velocity of a base model; what has weight 0 everywhere is left out.

    times, kv_chunks, extra: as in ``Window``. store: whether keys and values are stored, which only the pass with context does.
    """
    weights = guidance_weights(sampling, times)
    if kv_chunks[0] == (0, 1):
        weights[1, 0] += weights[0, 0]
        weights[0, 0] = 0
    if extra:
        weights[:, 0] = 0
    alone, context, text = weights.tolist()
    everything = tuple(range(len(times)))
    chosen = tuple(i for i, weight in enumerate(alone) if weight)
    parts = [Part("text", everything, tuple(text))] if any(text) else []
    parts += [Part("context", everything, tuple(context))] if any(context) or store else []
    return parts + ([Part("alone", chosen, tuple(alone[i] for i in chosen))] if chosen else [])


def run_parts(model: MagiDiT, window: Window, parts: Sequence[Part], cache: KVCache) -> list[tuple[Part, Tensor]]:
    """Every part with its velocity times its weights, [C, len(part.chunks), chunk_width, H, W].

    One after the other, which holds least; side by side where weights come from host memory and the window is small.
    """
    tokens = len(window.times) * _chunk_tokens(model, window)
    share = model.videodit_blocks.layers.on_host and tokens <= SHARED_TOKENS
    found = []
    for together in [parts] if share and parts else [[part] for part in parts]:
        velocities = model.finish([_start_part(model, window, part, cache) for part in together])
        for part, velocity in zip(together, velocities, strict=True):
            weights = numbers(part.weights, velocity.device)[:, None, None, None]
            found.append((part, _chunkwise(velocity, window) * weights))
    return found


def _distilled(model: MagiDiT, window: Window, cache: KVCache) -> Tensor:
    """[C, D, chunk_width, H, W]."""
    if not window.near_clean:
        return _pass(model, window, window.text, cache, dropped=False)
    near = int(window.extra)
    last = max(end for _, end in window.kv_chunks)
    with_copy = replace(
        window,
        x=torch.cat([window.x, _by_chunk(window)[None, :, near]], dim=2),
        times=(*window.times, window.times[near]),
        text=(*window.text, window.text[near]),
        kv_chunks=(*window.kv_chunks, (last, last + 1)),
    )
    velocity = _pass(model, with_copy, with_copy.text, cache, dropped=False)
    velocity[:, near] = NEAR_CLEAN_WEIGHT * velocity[:, near] + (1 - NEAR_CLEAN_WEIGHT) * velocity[:, -1]
    return velocity[:, :-1]


def _pass(model: MagiDiT, window: Window, text: Sequence[Caption], cache: KVCache, *, dropped: bool) -> Tensor:
    """One pass over the window with what came before it: velocity [C, D, chunk_width, H, W]."""
    return _chunkwise(model.finish([start(model, window, text, cache, dropped=dropped)])[0], window)


def _start_part(model: MagiDiT, window: Window, part: Part, cache: KVCache) -> Pass:
    if part.kind == "text":
        return start(model, replace(window, write_chunks=0), window.text, cache, dropped=False)
    if part.kind == "context":
        return start(model, window, _untold(window), cache, dropped=True)
    return start_alone(model, window, part.chunks, cache.memo)


def start(model: MagiDiT, window: Window, text: Sequence[Caption], cache: KVCache, *, dropped: bool) -> Pass:
    """A pass over the window with what came before it, up to the first layer; dropped: whether gates are told "no caption"."""
    chunks, tokens = len(window.times), _chunk_tokens(model, window)
    return model.start(
        window.x,
        numbers([window.times], window.x.device),
        _prompts(text, cache.memo),
        dropped=dropped,
        chunk_index=range(window.first_chunk, window.first_chunk + chunks),
        kv_range=[(start * tokens, end * tokens) for start, end in window.kv_chunks],
        step_embedding=window.step_embedding,
        cache=cache,
        write_tokens=window.write_chunks * tokens,
        memo=cache.memo,
    )


def start_alone(model: MagiDiT, window: Window, chosen: Sequence[int], memo: Memo) -> Pass:
    """A pass over chunks told nothing that see only themselves, each an item of its own, as if the video began with it."""
    return model.start(
        torch.stack([_by_chunk(window)[:, i] for i in chosen]),
        numbers([[window.times[i]] for i in chosen], window.x.device),
        _prompts([window.null] * len(chosen), memo),
        dropped=True,
        chunk_index=[0],
        kv_range=[(0, _chunk_tokens(model, window))],
        step_embedding=window.step_embedding,
        memo=memo,
    )


def _chunkwise(velocity: Tensor, window: Window) -> Tensor:
    """Velocity [N, C, T, H, W], N items of the same number of chunks, as [C, chunks, chunk_width, H, W]."""
    width = window.x.shape[2] // len(window.times)
    return torch.unflatten(velocity, 2, (-1, width)).transpose(0, 1).flatten(1, 2)


def _by_chunk(window: Window) -> Tensor:
    """x as [C, D, chunk_width, H, W], a view."""
    return torch.unflatten(window.x[0], 1, (len(window.times), -1))


def _untold(window: Window) -> tuple[Caption, ...]:
    return (window.null,) * len(window.times)


def _chunk_tokens(model: MagiDiT, window: Window) -> int:
    frames, height, width = _by_chunk(window).shape[2:]
    config = model.config
    return frames // config.t_patch_size * (height // config.patch_size) * (width // config.patch_size)


def _prompts(captions: Sequence[Caption], memo: Memo) -> list[Prompt]:
    """What the network keeps of each caption."""
    return [memo.prompt(caption, lambda c=caption: c.compact().embedding) for caption in captions]  # type: ignore[misc]
