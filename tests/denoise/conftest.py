"""Tiny models of the golden set, shared by the denoising tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from magi_core.golden import Golden
from magi_core.model import MagiDiT, promote


@pytest.fixture(scope="session")
def models(golden: Golden) -> Callable[[str], MagiDiT]:
    """A golden configuration's model by name, built once."""

    @cache
    def load(name: str) -> MagiDiT:
        config = golden.config(name).dit
        with torch.device("meta"):
            model = MagiDiT(config)
        model.load_state_dict(golden.weights(name), assign=True)
        promote(model, config.params_dtype)
        return model.requires_grad_(False)

    return load
