"""Tiny models of the golden set, shared by the denoising tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from magi_core.checkpoint.load import load_dit
from magi_core.golden import Golden
from magi_core.model import MagiDiT


@pytest.fixture(scope="session")
def models(golden: Golden) -> Callable[[str], MagiDiT]:
    """A golden configuration's model by name, built once."""

    @cache
    def load(name: str) -> MagiDiT:
        return load_dit(golden.weights_path(name), golden.config(name).dit).requires_grad_(False)

    return load
