"""Sizes and settings: what the public checkpoint's JSON says, as frozen dataclasses.

A public configuration file holds three objects, ``model_config``, ``runtime_config`` and ``engine_config`` (spec section 1).
They become three values here: ``DiTConfig`` (the network), ``Sampling`` (how chunks are denoised) and ``MagiConfig`` (both,
with what surrounds them). ``config_file`` reads and writes them, ``presets`` has those of the released models and magi-nano.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import lcm
from typing import Any

import torch

from magi_core.errors import MagiError, shorten, whole_number

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class DiTConfig:
    """The diffusion transformer's sizes (spec section 1; defaults are the 4.5B model's)."""

    num_layers: int = 34
    hidden_size: int = 3072
    ffn_hidden_size: int = 12288
    num_attention_heads: int = 24
    num_query_groups: int = 8
    kv_channels: int = 128
    layernorm_epsilon: float = 1e-6
    apply_layernorm_1p: bool = True
    x_rescale_factor: float = 1.0
    half_channel_vae: bool = False
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    t_patch_size: int = 1
    cond_hidden_ratio: float = 0.25
    xattn_cond_hidden_ratio: float = 1.0
    cond_gating_ratio: float = 1.0
    caption_channels: int = 4096
    caption_max_length: int = 800
    gated_linear_unit: bool = False
    params_dtype: torch.dtype = torch.bfloat16
    fp8_quant: bool = False
    distill: bool = False

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "kv_channels",
            "in_channels",
            "out_channels",
            "patch_size",
            "t_patch_size",
            "caption_channels",
            "caption_max_length",
        ):
            if getattr(self, name) < 1:
                raise MagiError(f"model_config.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("cond_hidden_ratio", "xattn_cond_hidden_ratio", "cond_gating_ratio"):
            if not 0 < getattr(self, name) <= MAX_RATIO:
                raise MagiError(
                    f"model_config.{name} is {getattr(self, name)}; it must be above 0 and at most {MAX_RATIO}"
                )
        if self.num_attention_heads % self.num_query_groups:
            raise MagiError(
                f"model_config.num_attention_heads {self.num_attention_heads} is not a multiple of num_query_groups {self.num_query_groups}"
            )
        if self.num_attention_heads * self.kv_channels % MERGE_SLICES:
            raise MagiError(
                f"model_config.num_attention_heads x kv_channels is {self.num_attention_heads * self.kv_channels}; it must be a multiple of {MERGE_SLICES}"
            )
        if self.rope_bands < 1 or 6 * self.rope_bands > self.kv_channels:
            raise MagiError(
                f"model_config gives {self.rope_bands} rotary bands (hidden_size / num_attention_heads / 8); "
                f"6 x bands must be between 6 and kv_channels {self.kv_channels}"
            )
        if self.fp8_quant and self.num_layers < 3:
            raise MagiError(
                f"engine_config.fp8_quant needs at least 3 layers (first and last stay plain); num_layers is {self.num_layers}"
            )

    @property
    def cond_hidden_size(self) -> int:
        """Width of the timestep and adaLN conditions."""
        return int(self.hidden_size * self.cond_hidden_ratio)

    @property
    def text_hidden_size(self) -> int:
        """Width of the projected caption that cross-attention reads."""
        return int(self.hidden_size * self.xattn_cond_hidden_ratio)

    @property
    def latent_channels(self) -> int:
        """Channels of the VAE's latents: half of the network's where the input is given twice (half_channel_vae)."""
        return self.in_channels // 2 if self.half_channel_vae else self.in_channels

    @property
    def rope_bands(self) -> int:
        """Learned rotary frequencies; counted from hidden_size / heads, not from kv_channels (spec 14.2)."""
        return self.hidden_size // self.num_attention_heads // 8


GUIDED_UNTIL = 0.3
"""From this time on the prompt's strength stays as the model has it (spec 7.1)."""
MAX_RATIO = 16
MAX_SIDE = 8192
"""Of a video, in pixels."""
MAX_STEPS = 1000
"""Of denoise steps, chunks in a window and latent frames of a chunk."""
MAX_KV_CHUNKS = 1_000_000
MAX_NUMBER = 1 << 63
"""No setting is infinite, NaN or larger than this, whatever a JSON file says."""
MERGE_SLICES = 8
"""Self- and cross-attention outputs are interleaved in 8 slices, whatever the number of KV groups (spec 14.1)."""


@dataclass(frozen=True)
class Sampling:
    """How a video is denoised (spec sections 7 and 8; defaults are the release's)."""

    num_steps: int = 64
    window_size: int = 4
    chunk_width: int = 6
    cfg_number: int = 3
    cfg_t_range: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    prev_chunk_scales: tuple[float, ...] = (1.5, 1.5, 1.5, 1.0, 1.0)
    text_scales: tuple[float, ...] = (7.5, 7.5, 7.5, 0.0, 0.0)
    noise2clean_kvrange: tuple[int, ...] = (5, 4, 3, 2)
    clean_chunk_kvrange: int = 1
    clean_t: float = 0.9999
    shortcut_mode: str = "8,16,16"
    distill_nearly_clean_chunk_threshold: float = 0.3
    times: tuple[float, ...] = ()
    """Times of the denoise steps in place of the model's own curve: num_steps + 1 values that rise from 0 (noise) to 1 (clean)."""
    anchor: bool = False
    """Whether the first chunk of a scene stays in sight, as if it stood right before the oldest chunk that is read; a scene begins with the
    video, and with every keyframe. Not in the release."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "window_size", "chunk_width"):
            whole_number(name, getattr(self, name), 1, MAX_STEPS)
        for name in ("cfg_t_range", "prev_chunk_scales", "text_scales", "noise2clean_kvrange", "times"):
            if not isinstance(getattr(self, name), tuple):
                raise MagiError(f"{name} is {shorten(getattr(self, name))}; it must be a tuple of numbers")
        for name in ("cfg_t_range", "prev_chunk_scales", "text_scales", "times"):
            for value in getattr(self, name):
                _finite_number(f"an entry of {name}", value)
        for name in ("clean_t", "distill_nearly_clean_chunk_threshold"):
            _finite_number(name, getattr(self, name))
        if not isinstance(self.anchor, bool):
            raise MagiError(f"anchor is {shorten(self.anchor)}; it must be true or false")
        if not isinstance(self.shortcut_mode, str):
            raise MagiError(f"shortcut_mode is {shorten(self.shortcut_mode)}; it must be text like '8,16,16'")
        for length in self.noise2clean_kvrange:
            whole_number("an entry of noise2clean_kvrange", length, 1, MAX_KV_CHUNKS)
        if self.clean_chunk_kvrange != -1:  # which stands for the last noise2clean_kvrange
            whole_number("clean_chunk_kvrange", self.clean_chunk_kvrange, 1, MAX_KV_CHUNKS)
        ranges = len(self.noise2clean_kvrange) or 1
        unit = lcm(self.window_size, ranges)
        if self.num_steps % unit:
            odd = f"window_size {self.window_size}"
            if not self.num_steps % self.window_size:
                odd = f"{ranges}, the number of noise2clean_kvrange entries"
            near = max(unit, self.num_steps - self.num_steps % unit)
            raise MagiError(
                f"num_steps {self.num_steps} is not a multiple of {odd}; use {near} steps or another window"
            )
        if self.cfg_number not in (1, 3):
            raise MagiError(
                f"cfg_number is {shorten(self.cfg_number)}; it must be 3 (base model) or 1 (distilled model)"
            )
        if not len(self.cfg_t_range) == len(self.prev_chunk_scales) == len(self.text_scales) >= 1:
            raise MagiError("cfg_t_range, prev_chunk_scales and text_scales must have the same number of entries")
        if self.cfg_t_range[0] > 0 or list(self.cfg_t_range) != sorted(self.cfg_t_range):
            raise MagiError(f"cfg_t_range is {list(self.cfg_t_range)}; it must begin with 0 and rise")
        if self.times:
            self._check_times()

    def _check_times(self) -> None:
        if self.cfg_number == 1:
            raise MagiError(
                "a distilled model takes the steps that it was taught, by their number; times are for base models"
            )
        if len(self.times) != self.num_steps + 1:
            raise MagiError(
                f"there are {len(self.times)} times for {self.num_steps} steps; {self.num_steps + 1} are needed"
            )
        if self.times[0] != 0 or self.times[-1] != 1 or any(a >= b for a, b in pairwise(self.times)):
            raise MagiError(f"times are {shorten(self.times)}; they must rise from 0 (noise) to 1 (clean)")

    def changed(
        self,
        *,
        steps: int | None = None,
        window: int | None = None,
        guidance: float | None = None,
        history_guidance: float | None = None,
        kv_ranges: tuple[int, ...] | None = None,
        times: tuple[float, ...] | None = None,
        anchor: bool | None = None,
    ) -> Sampling:
        """These settings with what a person asked for; None leaves the model's own.

        steps: of every chunk, a multiple of window, the chunks denoised at once. guidance: strength of the prompt, history_guidance:
        of the chunks before, both while the noise is strong (t < 0.3). kv_ranges: see ``noise2clean_kvrange``. times: of the steps,
        whose number they set where ``steps`` does not. anchor: see there. Raises MagiError for what does not go together.
        """
        changes: dict[str, Any] = {}
        if times is not None:
            changes |= {"times": times, "num_steps": len(times) - 1}
        if steps is not None:
            changes["num_steps"] = steps
        if window is not None:
            changes["window_size"] = window
        if guidance is not None:
            changes["text_scales"] = self._scaled("guidance", guidance, self.text_scales)
        if history_guidance is not None:
            changes["prev_chunk_scales"] = self._scaled("history_guidance", history_guidance, self.prev_chunk_scales)
        if kv_ranges is not None:
            changes["noise2clean_kvrange"] = kv_ranges
        if anchor is not None:
            changes["anchor"] = anchor
        return replace(self, **changes)

    def _scaled(self, name: str, asked: float, own: tuple[float, ...]) -> tuple[float, ...]:
        """The scales ``own`` with what was ``asked`` where the noise is strong."""
        _finite_number(name, asked)
        if self.cfg_number == 1:
            raise MagiError(
                f"{name} is {shorten(asked)}; a distilled model has its guidance built in: leave the model's own"
            )
        return tuple(asked if t < GUIDED_UNTIL else scale for t, scale in zip(self.cfg_t_range, own, strict=True))


def _finite_number(name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
    if not number:
        raise MagiError(f"{name} is {shorten(value)}; it must be a finite number")


@dataclass(frozen=True)
class MagiConfig:
    """A whole model as one configuration file describes it; paths are as written in the file."""

    dit: DiTConfig = DiTConfig()
    sampling: Sampling = Sampling()
    height: int = 720
    width: int = 720
    fps: int = 24
    num_frames: int = 96
    seed: int = 1234
    scale_factor: float = 0.18215
    temporal_downsample_factor: int = 4
    load: str = ""
    t5_pretrained: str = ""
    vae_pretrained: str = ""

    def __post_init__(self) -> None:
        for name, high in (("height", MAX_SIDE), ("width", MAX_SIDE), ("fps", 240), ("temporal_downsample_factor", 64)):
            whole_number(f"runtime_config.{name}", getattr(self, name), 1, high)
        if not 0 < self.scale_factor < MAX_NUMBER:
            raise MagiError(f"runtime_config.scale_factor is {self.scale_factor}; it must be above 0")
        if self.sampling.cfg_number != (1 if self.dit.distill or self.dit.fp8_quant else 3):
            kind = "distilled or fp8" if self.dit.distill or self.dit.fp8_quant else "base"
            raise MagiError(
                f"runtime_config.cfg_number is {self.sampling.cfg_number}, but a {kind} model needs {4 - self.sampling.cfg_number}"
            )
