"""How much memory a video will need on the device, part by part, and what to change where it is too much.

Weights and keys and values are sums over the configuration; activations are counted on the model's own code (see ``peak``), at the
fullest step of the schedule. Not counted: the VAE's tiles, which are decoded while no pass runs, and workspaces inside of kernels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from magi_core.checkpoint.load import empty_dit
from magi_core.config import DiTConfig, MagiConfig, Sampling
from magi_core.cost.peak import peak_bytes
from magi_core.denoise.guidance import SHARED_TOKENS
from magi_core.denoise.schedule import Schedule, Step, prefix_kv_length
from magi_core.errors import MagiError
from magi_core.kernels import AttnRange
from magi_core.memory.streaming import SLOTS, Place
from magi_core.model import KVCache, MagiDiT

CUDA_CONTEXT = 700_000_000
"""What a CUDA context and its libraries take before the first tensor."""
COUNTED_PIXELS = 1 << 21
"""Beyond this a pass works in so many tiles that it holds in proportion to its tokens; to count all of them would take minutes."""
SIDES = (720, 640, 544, 480, 384, 320, 256)
"""Shorter sides, in pixels, that are proposed where a video is too large."""
SIDE_UNIT = 16


@dataclass(frozen=True)
class Use:
    """A video to be made, and how."""

    config: MagiConfig
    """Its ``dit.params_dtype`` is what is computed in."""
    height: int
    """In pixels."""
    width: int
    sampling: Sampling
    weights: Place = "resident"
    fp8: bool = False
    """Quantise on load; the public fp8 checkpoints say so in their configuration."""
    beside: int = 0
    """Bytes of what stays on the device beside the transformer: the VAE, a text encoder."""
    gpu: bool = True

    @classmethod
    def of(cls, config: MagiConfig) -> Use:
        """The model's own size and settings."""
        return cls(config, config.height, config.width, config.sampling)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device while a video is denoised."""

    use: Use = field(repr=False)
    weights: int
    """Parameters of the transformer; when streamed, those that are not part of a layer."""
    slots: int
    """Streamed layers under way."""
    kv_cache: int
    """Keys and values of finished chunks; when weights are streamed, those of the layer under way."""
    activations: int
    beside: int
    context: int
    host: int
    """Bytes of host memory that streamed weights take, and keys and values with them; not on the device."""

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.working + self.beside + self.context

    @property
    def working(self) -> int:
        """Bytes that a host must leave free which brings the parameters to the device itself."""
        return self.slots + self.kv_cache + self.activations

    def fits(self, free: int) -> bool:
        """Whether ``free`` bytes on the device are enough."""
        return self.total <= free

    def text(self) -> str:
        """Settings and need in one phrase."""
        use = self.use
        how = [f"{use.width} x {use.height}", f"weights {use.weights}"]
        how += ["fp8"] if use.fp8 or use.config.dit.fp8_quant else []
        host = f" and {size_text(self.host)} of main memory" if self.host else ""
        return f"{', '.join(how)}, window {use.sampling.window_size}: {size_text(self.total)}{host}"


def plan_memory(use: Use) -> MemoryPlan:
    """What ``use`` needs. Raises MagiError for settings that do not go together."""
    dit, sampling = use.config.dit, use.sampling
    tokens = tokens_per_chunk(use.config, sampling, use.height, use.width)
    step, past = fullest_step(sampling, use.config.num_frames)
    outside, layers = weight_bytes(dit, use.fp8)
    streamed = use.weights == "streamed"
    window = tokens * len(step.kv_chunks)
    beside = (
        2 if streamed and sampling.cfg_number == 3 and window <= SHARED_TOKENS else 0
    )  # passes that wait in a layer
    keys = past * tokens * 2 * dit.num_query_groups * dit.kv_channels * dit.params_dtype.itemsize
    return MemoryPlan(
        use,
        weights=outside + (0 if streamed else sum(layers)),
        slots=SLOTS * max(layers) if streamed else 0,
        kv_cache=keys if streamed else keys * dit.num_layers,
        activations=_activations(use, step) + beside * window * dit.hidden_size * dit.params_dtype.itemsize,
        beside=use.beside,
        context=CUDA_CONTEXT if use.gpu else 0,
        host=sum(layers) + keys * dit.num_layers if streamed else 0,
    )


def choose_place(use: Use, wanted: Place | Literal["auto"], free: int) -> Place:
    """Where the layers' weights go so that ``use`` fits into ``free`` bytes; "auto" is resident where that fits.

    Raises MagiError, which says what would fit, where it does not. Main memory is not held to a plan: what is too much goes to disk.
    """
    if not use.gpu:
        return "resident" if wanted == "auto" else wanted
    places: tuple[Place, ...] = ("resident", "streamed") if wanted == "auto" else (wanted,)
    for place in places:
        if plan_memory(replace(use, weights=place)).fits(free):
            return place
    raise refusal(replace(use, weights=places[0]), free)


def refusal(use: Use, free: int) -> MagiError:
    """The error for a video that does not fit, with settings that would."""
    plan, fitting = plan_memory(use), [other.text() for other in proposals(use, free)]
    advice = (
        f"what would fit: {'; '.join(fitting)}" if fitting else "no setting of this model fits; use a smaller model"
    )
    return MagiError(
        f"{plan.text()} are needed (weights {size_text(plan.weights + plan.slots)}, keys and values {size_text(plan.kv_cache)}, "
        f"activations {size_text(plan.activations)}), {size_text(free)} are free; {advice}"
    )


def proposals(use: Use, free: int) -> Iterator[MemoryPlan]:
    """Plans near to ``use`` that fit into ``free`` bytes, what changes least first; at most one of each kind."""
    streamed = replace(use, weights="streamed") if use.gpu else use
    narrow = replace(streamed, sampling=replace(use.sampling, window_size=1))
    kinds: list[Sequence[Use]] = [
        [streamed] if use.weights != streamed.weights else [],
        [replace(use, fp8=True)] if use.gpu and not use.fp8 and not use.config.dit.fp8_quant else [],
        [narrow] if use.sampling.window_size > 1 else [],
        list(_smaller(streamed)),
    ]
    for kind in kinds:
        yield from islice(filter(lambda plan: plan.fits(free), map(plan_memory, kind)), 1)


def free_bytes(device: torch.device) -> int:
    """Bytes that a new model may take on ``device``: free ones, and those that torch holds without using them. 0: it does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0


@lru_cache(maxsize=16)
def weight_bytes(dit: DiTConfig, fp8: bool = False) -> tuple[int, list[int]]:
    """Bytes of what is not part of a layer, and of each layer."""
    model = _few_layers(dit, fp8)
    sizes = [_nbytes(layer) for layer in model.videodit_blocks.get_submodule("layers").children()]
    layers = (
        sizes[:1] + sizes[1:2] * (dit.num_layers - len(sizes)) + sizes[1:] if len(sizes) > 1 else sizes * dit.num_layers
    )
    return _nbytes(model) - sum(sizes), layers


def tokens_per_chunk(
    config: MagiConfig, sampling: Sampling, height: int, width: int, pixels_per_latent: int = 8
) -> int:
    """Tokens of one chunk of ``height`` x ``width`` pixels (12,150 for 720 x 720)."""
    patch = config.dit.patch_size * pixels_per_latent
    return sampling.chunk_width // config.dit.t_patch_size * (height // patch) * (width // patch)


def fullest_step(sampling: Sampling, num_frames: int) -> tuple[Step, int]:
    """The step with most chunks, and most keys, of a long video; and how many finished chunks are held at most beside those in it.

    With an empty ``noise2clean_kvrange`` every chunk sees all before it: those of a video of ``num_frames`` frames.
    """
    ranges = sampling.noise2clean_kvrange
    farthest = max(*ranges, prefix_kv_length(sampling)) if ranges else 0
    chunks = sampling.window_size + farthest + 1 if ranges else -(-num_frames // (4 * sampling.chunk_width))
    steps = list(Schedule.of(sampling).run(0, chunks))
    fullest = max(steps, key=lambda step: (len(step.kv_chunks), sum(end - start for start, end in step.kv_chunks)))
    return fullest, max(step.chunks.start - min(start for start, _ in step.kv_chunks) for step in steps)


@lru_cache(maxsize=128)
def activation_bytes(
    dit: DiTConfig,
    kv_chunks: Sequence[tuple[int, int]],
    end: int,
    chunk_width: int,
    height: int,
    width: int,
    *,
    fp8: bool,
) -> int:
    """Most bytes that a pass holds at once beside weights and cache.

    Its chunks end before ``end`` and see ``kv_chunks``; chunk_width in latent frames, height and width in pixels.
    """
    model, count = _few_layers(dit, fp8), len(kv_chunks)
    first, oldest = end - count, min(start for start, _ in kv_chunks)
    with torch.device("meta"):
        x = torch.empty(1, dit.latent_channels, count * chunk_width, height // 8, width // 8)
        t, y = torch.empty(1, count), torch.empty(count, dit.caption_max_length, dit.caption_channels)
        tokens = chunk_width // dit.t_patch_size * (x.shape[3] // dit.patch_size) * (x.shape[4] // dit.patch_size)
        row = torch.empty(tokens, dit.num_query_groups, 2 * dit.kv_channels, dtype=dit.params_dtype)
        cache = KVCache()
        for chunk in range(oldest, first):
            for layer in range(model.config.num_layers):
                cache.write(layer, chunk, row)
    mask = torch.ones(count, dit.caption_max_length, device="cpu")
    ranges = [(start * tokens, end * tokens) for start, end in kv_chunks]
    given = {"dropped": True, "chunk_index": range(first, end), "kv_range": ranges, "cache": cache}
    return peak_bytes(lambda: model(x, t, y, mask, step_embedding=1.0 if dit.distill else None, **given))


def _activations(use: Use, step: Step) -> int:
    """``activation_bytes`` of a step; of a video larger than COUNTED_PIXELS in proportion to its tokens."""
    shrink = min(1.0, (COUNTED_PIXELS / (use.height * use.width)) ** 0.5)
    height, width = (
        max(2 * SIDE_UNIT, math.floor(side * shrink) // SIDE_UNIT * SIDE_UNIT) if shrink < 1 else side
        for side in (use.height, use.width)
    )
    dit, chunk_width = use.config.dit, use.sampling.chunk_width
    counted = activation_bytes(dit, step.kv_chunks, step.chunks.stop, chunk_width, height, width, fp8=use.fp8)
    return -(-counted * use.height * use.width // (height * width))


def _few_layers(dit: DiTConfig, fp8: bool) -> MagiDiT:
    """Every kind of layer that there is, once: they run one after the other, so more of them hold no more."""
    kinds = 3 if fp8 or dit.fp8_quant else 1
    return empty_dit(replace(dit, num_layers=min(kinds, dit.num_layers)), attend=_attend, fp8=fp8)


def _attend(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange]) -> Tensor:
    """What attention holds at its peak, whatever kernel does it: its output twice, range by range and in order."""
    return torch.empty_like(q).clone()


def _smaller(use: Use) -> Iterator[Use]:
    """The same shape at smaller sides."""
    short = min(use.height, use.width)
    for side in SIDES:
        if side < short:
            sides = (max(2, round(value * side / short / SIDE_UNIT)) * SIDE_UNIT for value in (use.height, use.width))
            height, width = sides
            yield replace(use, height=height, width=width)


def _nbytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def size_text(nbytes: int) -> str:
    """Bytes for people."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
