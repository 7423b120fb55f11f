"""Workers, without starting any: who ends for whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nodes import workers
from nodes.workers import Workers


class Engine:
    """Stands for processes that run."""

    alive = True
    runner = None

    def close(self) -> None:
        self.alive = False


def test_new_workers_end_those_that_hold_a_model_on_the_same_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "suited", lambda *asked: (None, None))
    monkeypatch.setattr(workers, "start", lambda *asked: Engine())
    session: Any = SimpleNamespace(runner=None)
    build: Any = None
    first, other, second = (
        Workers(build, devices, "auto", "auto")
        for devices in (["cuda:0", "cuda:1"], ["cuda:2", "cuda:3"], ["cuda:1", "cuda:4"])
    )
    for one in (first, other, second):
        one.take(session)
    assert [one.alive for one in (first, other, second)] == [False, True, True]
    first.take(session)
    assert [one.alive for one in (first, other, second)] == [True, True, False]
