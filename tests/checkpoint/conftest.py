"""The miniature checkpoint as fixtures."""

from __future__ import annotations

import pytest
from torch import Tensor

from magi_core.config import DiTConfig
from tests.checkpoint.tiny import TINY, random_tensors


@pytest.fixture(scope="session")
def tiny() -> DiTConfig:
    return TINY


@pytest.fixture(scope="session")
def tensors() -> dict[str, Tensor]:
    return random_tensors(TINY)
