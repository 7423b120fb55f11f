"""Small models and recorded passes, shared by the tests of the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from magi_core.checkpoint.load import load_dit
from magi_core.config import DiTConfig
from magi_core.golden import Case, Golden, compare
from magi_core.model import MagiDiT

TINY = DiTConfig(
    num_layers=2,
    hidden_size=48,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=12,
    in_channels=4,
    out_channels=4,
    caption_channels=8,
    caption_max_length=10,
    params_dtype=torch.float32,
)


@pytest.fixture(scope="session")
def recorded_model(golden: Golden) -> Callable[[str], MagiDiT]:
    """A golden configuration's model by name."""

    @cache
    def load(name: str) -> MagiDiT:
        return load_dit(golden.weights_path(name), golden.config(name).dit).requires_grad_(False)

    return load


@pytest.fixture
def tiny() -> MagiDiT:
    torch.manual_seed(0)
    return MagiDiT(TINY)


def assert_recorded(computed: Tensor, case: Case, name: str) -> None:
    """Within both limits of the case's tolerance."""
    max_abs, rel_rms = compare(computed, case.outputs[name])
    limit = case.tolerance[name]
    print(f"{case.id} {name}: {max_abs:.1e} of {limit.max_abs:.0e}, rms {rel_rms:.1e} of {limit.rel_rms:.0e}")
    assert max_abs <= limit.max_abs and rel_rms <= limit.rel_rms, f"{case.id} {name}: {max_abs}, {rel_rms}; {limit}"
