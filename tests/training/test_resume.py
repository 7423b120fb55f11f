"""A training run that is broken off and resumed ends in the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from magi_core.errors import MagiError
from magi_core.training.dit import STATE_FILE, DiTSettings, start_dit, train_dit
from tests.training.test_objective import TINY, random_clips

SETTINGS = DiTSettings(steps=6, workers=2, batch={"first": 2, "next": 1, "stream": 1}, warmup_steps=2)


def test_resumed_equals_unbroken_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_dit(TINY, random_clips(), tmp_path / "whole", SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr("magi_core.training.dit._progress", lambda state, s: 1.0 if state.step == 3 else state.step / 6)
        train_dit(TINY, random_clips(), tmp_path / "parts", SETTINGS)
    resumed = train_dit(TINY, random_clips(), tmp_path / "parts", SETTINGS)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    states = [start_dit(TINY, tmp_path / part, SETTINGS) for part in ("whole", "parts")]
    assert [s.step for s in states] == [6, 6]
    moments = [{k: v for o in s.optimizers.values() for k, v in o.state_dict()["state"].items()} for s in states]
    torch.testing.assert_close(moments[0], moments[1], rtol=0, atol=0)


def test_a_damaged_or_foreign_state_is_refused(tmp_path: Path) -> None:
    train_dit(TINY, random_clips(), tmp_path, replace(SETTINGS, steps=1))
    with pytest.raises(MagiError, match="another network"):
        start_dit(replace(TINY, ffn_hidden_size=32), tmp_path, SETTINGS)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(MagiError, match="cannot go on"):
        start_dit(TINY, tmp_path, SETTINGS)
