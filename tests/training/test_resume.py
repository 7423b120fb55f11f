"""A training run that is broken off and resumed, and looked at on the way, ends in the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.training.dit import STATE_FILE, DiTSettings, start_dit, train_dit
from tests.training.test_objective import TINY, random_clips

SETTINGS = DiTSettings(steps=6, workers=2, batch={"first": 2, "next": 1, "stream": 1}, warmup_steps=2)


def unseen(weights: Mapping[str, Tensor], step: int) -> None:
    pass


def test_resumed_and_looked_at_equals_unbroken_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks is told the averaged weights of every second step and the last, and may draw numbers as a sampler does."""
    looked: list[int] = []
    last: dict[str, Tensor] = {}

    def look(weights: Mapping[str, Tensor], step: int) -> None:
        looked.append(step)
        last.update({name: value.clone() for name, value in weights.items()})
        torch.manual_seed(step)
        torch.randn(9)

    train_dit(TINY, random_clips(), tmp_path / "whole", replace(SETTINGS, keep_steps=0), unseen)
    often = replace(SETTINGS, keep_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("magi_core.training.dit.progress", lambda state, s: 1.0 if state.step == 3 else state.step / 6)
        train_dit(TINY, random_clips(), tmp_path / "parts", often, look)
    train_dit(TINY, random_clips(), tmp_path / "parts", often, look)
    assert looked == [2, 3, 4, 6]
    states = [start_dit(TINY, tmp_path / part, SETTINGS) for part in ("whole", "parts")]
    assert [s.step for s in states] == [6, 6]
    for name, value in states[0].ema.items():
        assert torch.equal(value, states[1].ema[name]) and torch.equal(value, last[name]), name
    moments = [{k: v for o in s.optimizers.values() for k, v in o.state_dict()["state"].items()} for s in states]
    torch.testing.assert_close(moments[0], moments[1], rtol=0, atol=0)


def test_a_damaged_or_foreign_state_is_refused(tmp_path: Path) -> None:
    train_dit(TINY, random_clips(), tmp_path, replace(SETTINGS, steps=1), unseen)
    with pytest.raises(MagiError, match="another network"):
        start_dit(replace(TINY, ffn_hidden_size=32), tmp_path, SETTINGS)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(MagiError, match="cannot go on"):
        start_dit(TINY, tmp_path, SETTINGS)
