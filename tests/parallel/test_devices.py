"""`--devices` on the command line."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from magi_core.cli import main
from magi_core.errors import MagiError
from magi_core.making import Making
from magi_core.parallel import Engine, Strategy, start
from magi_core.parallel.devices import parse_devices
from magi_core.parallel.worker import Build, Decoder
from magi_core.video import read_video


def test_the_same_video_by_two_processes_broken_off_and_finished_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "--prompt", "a red circle", "--seconds", "1", "--steps", "4", "--quiet", "--seed", "1"]
    assert main([*words, "-o", "one.mp4"]) == 0
    step, steps, started = Making.step, iter(range(2)), []

    def interrupted(self: Making, deliver: object, *, drain: bool = True) -> object:
        if next(steps, None) is None:
            signal.raise_signal(signal.SIGINT)
        return step(self, deliver, drain=drain)

    def watched(build: Build, devices: list[str], strategy: Strategy, decoder: Decoder | None) -> Engine:
        started.append((devices, decoder is not None))
        return start(build, devices, strategy, decoder)

    monkeypatch.setattr("magi_core.cli.devices.start", watched)
    monkeypatch.setattr("magi_core.cli.devices.decode_too", lambda making, build, devices, *_: len(devices) > 1)
    with monkeypatch.context() as patch:
        patch.setattr(Making, "step", interrupted)
        assert main([*words, "--devices", "cpu,cpu", "-o", "two.mp4"]) == 130
    assert main(["resume", "two.run", "--devices", "cpu", "--quiet"]) == 0
    assert started == [(["cpu", "cpu"], True), (["cpu"], False)]
    one, two = (read_video(Path(name)).astype(int) for name in ("one.mp4", "two.mp4"))
    assert np.abs(one - two).max() <= 1


def test_a_scoring_command_starts_its_workers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, closed, close = [], [], Engine.close

    def watched(build: Build, devices: list[str], strategy: Strategy, decoder: Decoder | None) -> Engine:
        started.append(devices)
        return start(build, devices, strategy, decoder)

    def noted(engine: Engine) -> None:
        closed.append(engine)
        close(engine)

    monkeypatch.setattr("magi_core.cli.devices.start", watched)
    monkeypatch.setattr(Engine, "close", noted)
    words = ["drift", "--count", "2", "--seconds", "2", "--steps", "4"]
    assert main([*words, "-o", str(tmp_path / "alone")]) == 0
    assert main([*words, "-o", str(tmp_path / "two"), "--devices", "cpu,cpu"]) == 0
    assert started == [["cpu", "cpu"]] and len(closed) == 1
    alone, two = (json.loads((tmp_path / name / "drift.json").read_text()) for name in ("alone", "two"))
    assert alone == two


def test_devices_are_named_by_number_or_in_full() -> None:
    assert parse_devices("0, 1", "--devices") == ["cuda:0", "cuda:1"]
    assert parse_devices("cpu,cpu", "--devices") == ["cpu", "cpu"]
    for wrong in ("", "0,,1", "gpu", "0,0", "cuda:x", "cpu,0"):
        with pytest.raises(MagiError, match="--devices"):
            parse_devices(wrong, "--devices")
