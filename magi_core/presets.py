"""The released models and magi-nano, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from magi_core.config import DiTConfig, MagiConfig, Sampling

_RELEASE_24B = DiTConfig(
    num_layers=48,
    hidden_size=6144,
    ffn_hidden_size=16384,
    num_attention_heads=48,
    x_rescale_factor=0.1,
    half_channel_vae=True,
    in_channels=32,
    out_channels=32,
    gated_linear_unit=True,
)
_NANO = DiTConfig(
    num_layers=6,
    hidden_size=192,
    ffn_hidden_size=768,
    num_attention_heads=3,
    num_query_groups=1,
    kv_channels=64,
    cond_hidden_ratio=1.0,
    caption_channels=128,
    caption_max_length=256,
    params_dtype=torch.float32,
)
_NANO_SAMPLING = Sampling(
    num_steps=8,
    prev_chunk_scales=(3.0, 3.0, 3.0, 1.0, 1.0),
    text_scales=(2.5, 2.5, 2.5, 1.0, 1.0),
)


def _variants(name: str, dit: DiTConfig, base: MagiConfig) -> dict[str, MagiConfig]:
    distilled = replace(base.sampling, cfg_number=1, num_steps=16)
    return {
        name: replace(base, dit=dit),
        f"{name}-distill": replace(base, dit=replace(dit, distill=True), sampling=distilled),
        f"{name}-distill-fp8": replace(base, dit=replace(dit, distill=True, fp8_quant=True), sampling=distilled),
    }


_NANO_MODEL = MagiConfig(dit=_NANO, sampling=_NANO_SAMPLING, height=64, width=64, scale_factor=1.0)
PRESETS: Mapping[str, MagiConfig] = {
    "nano": _NANO_MODEL,
    "nano-distilled": replace(
        _NANO_MODEL, dit=replace(_NANO, distill=True), sampling=replace(_NANO_SAMPLING, cfg_number=1)
    ),
    **_variants("4.5b", DiTConfig(), MagiConfig()),
    **_variants("24b", _RELEASE_24B, MagiConfig(sampling=Sampling(num_steps=32), height=720, width=1280)),
}
"""Model sizes by name; a checkpoint's own configuration file, where there is one, wins."""
