"""What training multiplies in: bfloat16 where the processor has instructions for it, float32 where it has none.

A CPU without them needs ten times as long for a step of magi-nano in bfloat16 as in float32 (with AVX2: 14 and 1.4 s).
"""

from __future__ import annotations

import torch


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 take no longer than in float32: on every GPU, and on CPUs with AVX-512."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def autocast(device: torch.device, *, wanted: bool | None = None, cache: bool = True) -> torch.autocast:
    """A context of bfloat16 products over float32 weights, if ``wanted``; None: if the device is fast at them. cache: torch's ``cache_enabled``."""
    enabled = is_fast_in_bfloat16(device) if wanted is None else wanted
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=cache)
