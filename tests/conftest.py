"""What the tests share: the golden tensors, read once per case."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from magi_core.golden import Golden

torch.set_num_threads(1)

SUBSET = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The golden folder: the whole set where MAGI_GOLDEN names it, the shipped subset otherwise."""
    return Golden(Path(os.environ.get("MAGI_GOLDEN") or SUBSET))
