"""Tiny models: those of the golden set, and one small enough to run hundreds of sessions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from magi_core.config import DiTConfig
from magi_core.model import MagiDiT


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TINY = DiTConfig(
    num_layers=3,
    hidden_size=32,
    ffn_hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    in_channels=2,
    out_channels=2,
    caption_channels=4,
    caption_max_length=60,
    params_dtype=torch.float32,
)


@pytest.fixture(scope="session")
def tiny() -> MagiDiT:
    """Three layers, so that what clean chunks see of each other reaches back; latents of 2 channels and at least 4 x 4."""
    torch.manual_seed(0)
    return MagiDiT(TINY).requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_distilled() -> MagiDiT:
    torch.manual_seed(1)
    return MagiDiT(DiTConfig(**{**vars(TINY), "distill": True})).requires_grad_(False)
