"""Noise that depends on nothing but the seed and the chunk's place in the video.

Drawn on the CPU, so plan length, device, number of processes and the order of work do not change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from magi_core.errors import whole_number

SEEDS = 2**64


def check_seed(seed: int) -> int:
    """The seed; raises MagiError where it is not a whole number from 0 to 2**64 - 1."""
    return whole_number("seed", seed, 0, SEEDS - 1)


def chunk_noise(seed: int, chunk: int, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 noise of ``shape`` on the CPU, for chunk number ``chunk`` of the video with this seed."""
    digest = hashlib.sha256(f"{seed} {chunk}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
