"""Layers dealt out to processes in a line, against one process."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from magi_core.checkpoint.find import find_checkpoint
from magi_core.checkpoint.load import load_dit
from magi_core.config import DiTConfig, Sampling
from magi_core.denoise.rewind import rewind
from magi_core.denoise.session import Session
from magi_core.errors import MagiError
from magi_core.memory.streaming import Place
from magi_core.parallel.engine import Engine, FromFiles, start
from magi_core.parallel.launch import Spawned
from magi_core.parallel.units import share_of
from magi_core.parallel.worker import Strategy
from magi_core.text.assembly import null_caption
from tests.parallel.jobs import random_model
from tests.parallel.test_engine import BASE, CONFIG, QUICK, SIZE, Part, condition, distance, make

DEEP = replace(CONFIG, num_layers=4)
DISTILLED = replace(DEEP, distill=True)
LONG = replace(BASE, num_steps=8)
"""Two steps a stage: what is remembered is read in the second."""


class Watched(Part):
    """Counts steps that were begun before they were asked for."""

    steps = begun = 0

    def call(self, method: str, *arguments: Any) -> list[Any]:
        if method == "advance":
            self.steps += 1
            self.begun += arguments[1] is None
        return super().call(method, *arguments)


def line(crew: Spawned, config: DiTConfig, strategy: Strategy) -> tuple[Engine, Watched]:
    name = repr((config, strategy))
    crew.call("run", "begin", name, partial(random_model, config), strategy)
    workers = Watched(crew, name)
    return Engine(workers, ahead=strategy.pipeline > 1), workers


@pytest.mark.parametrize(
    ("crew", "strategy", "config", "sampling", "kind"),
    [
        ("two", Strategy(pipeline=2), DEEP, replace(BASE, window_size=1), "image"),
        ("two", Strategy(pipeline=2), DEEP, LONG, "video"),
        ("two", Strategy(pipeline=2), DEEP, BASE, "extension"),
        ("two", Strategy(pipeline=2), DISTILLED, replace(QUICK, num_steps=8), "text"),
        ("four", Strategy(pipeline=4), DEEP, LONG, "text"),
        ("four", Strategy(pipeline=4), DISTILLED, replace(QUICK, window_size=1), "video"),
        ("four", Strategy(pipeline=2, stages=2), DEEP, BASE, "text"),
        ("four", Strategy(exchange="heads", pipeline=2), DISTILLED, QUICK, "extension"),
    ],
    ids=["image", "video", "extension", "distilled", "four", "four, distilled", "two by two", "two by two, heads"],
)
def test_a_generation_equals_that_of_one_process(
    crew: str, strategy: Strategy, config: DiTConfig, sampling: Sampling, kind: str, request: pytest.FixtureRequest
) -> None:
    """Latents, and the keys and values of all layers; the line never ran dry but where more was planned after it stopped."""
    engine, workers = line(request.getfixturevalue(crew), config, strategy)
    latents, session = make(config, sampling, kind, engine.runner)
    expected, alone = make(config, sampling, kind, None)
    assert distance(latents, expected) < 1e-5
    assert session.state.cache is not None and alone.state.cache is not None
    held, wanted = session.state.cache.state(), alone.state.cache.state()
    assert held.keys() == wanted.keys() and session.state.cache.chunks == alone.state.cache.chunks
    assert all(distance(held[name], rows) < 1e-5 for name, rows in wanted.items() if name != "chunks")
    assert workers.begun == workers.steps - (2 if kind == "extension" else 1) > 0


@pytest.mark.parametrize(
    "strategy", [Strategy(passes=2), Strategy(stages=2), Strategy(exchange="heads"), Strategy(pipeline=2)], ids=str
)
def test_an_anchor_is_remembered_by_every_worker(strategy: Strategy, two: Spawned) -> None:
    engine, workers = line(two, DEEP, strategy)
    sampling = replace(LONG, noise2clean_kvrange=(3, 2), anchor=True)
    latents, session = make(DEEP, sampling, "video", engine.runner)
    expected, _ = make(DEEP, sampling, "video", None)
    without, _ = make(DEEP, replace(sampling, anchor=False), "video", None)
    assert distance(latents, expected) < 1e-5 < 1e-3 < distance(without, expected)
    assert session.state.cache is not None and session.state.cache.chunks
    if strategy.pipeline > 1:
        assert 0 < workers.begun < workers.steps - 1, "a step before which the anchor moves is not begun ahead"


def test_what_was_foreseen_and_does_not_come_leaves_no_trace(two: Spawned) -> None:
    """Another video in between, a step that is done again, and a chunk that is made anew."""
    engine, workers = line(two, DEEP, Strategy(pipeline=2))
    model = random_model(DEEP)

    def begun(seed: int) -> Session:
        session = Session(model, LONG, height=SIZE[0], width=SIZE[1], seed=seed, null=null_caption(model.null_caption))
        session.add([condition(chunk) for chunk in range(3)])
        return session

    def walk(*sessions: Session) -> torch.Tensor:
        finished = {}
        for number in range(14):
            for session in (one for one in sessions if not one.done):
                before = session.state
                chunk = session.step()
                if number == 3:
                    session.state = before  # as if the answer had not arrived
                    chunk = session.step()
                if chunk is not None and session is sessions[0]:
                    finished[chunk.index] = chunk.latents
            if number == 8:
                rewind(sessions[0], 1, finished.__getitem__, seed=8)
        return torch.cat([*finished.values(), *sessions[0].state.in_flight.values()], dim=2)

    expected = walk(begun(3))
    mine, other = begun(3), begun(4)
    mine.run_by(engine.runner)
    other.run_by(engine.runner)
    assert distance(walk(mine, other), expected) < 1e-5
    assert workers.begun == 1, "the last step, once the other video is done"
    alone = begun(3)
    alone.run_by(engine.runner)
    assert distance(walk(alone), expected) < 1e-5
    assert workers.begun > 0


def test_in_bfloat16(two: Spawned) -> None:
    """A chunk at a time is rounded otherwise than a window at a time."""
    for config, sampling in ((DEEP, BASE), (DISTILLED, QUICK)):
        half = replace(config, params_dtype=torch.bfloat16)
        runner = line(two, half, Strategy(pipeline=2))[0].runner
        assert distance(make(half, sampling, "text", runner)[0], make(half, sampling, "text", None)[0]) < 2e-2


def test_a_worker_killed_in_a_step_is_an_error_and_the_video_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for its hidden states, or its velocities, and do not hang."""
    model = random_model(DEEP)
    expected, _ = make(DEEP, BASE, "text", None)
    session = Session(model, BASE, height=SIZE[0], width=SIZE[1], seed=3, null=null_caption(model.null_caption))
    session.add([condition(chunk) for chunk in range(4)])
    found = []
    with start(partial(random_model, DEEP), ["cpu", "cpu"], Strategy(pipeline=2)) as engine:
        crew = engine.crew
        assert isinstance(crew, Spawned)
        session.run_by(engine.runner)
        found.append(session.step(drain=False))
        session.save(Path(crew._folder.name) / "a.session")
        kept, _, _ = Session.load(Path(crew._folder.name) / "a.session", model)
        answers, before, pid = crew._answers, session.state, crew.pids[1]
        assert pid is not None

        def killed() -> list[Any]:
            os.kill(pid, signal.SIGKILL)  # it was told what to do
            return answers()

        monkeypatch.setattr(crew, "_answers", killed)
        begun = time.monotonic()
        with pytest.raises(MagiError, match=r"worker 1 .*ended unexpectedly"):
            session.step(drain=False)
        assert time.monotonic() - begun < 5
        assert session.state is before and not crew.alive and crew.pids == []
    found += kept.run(drain=False)
    latents = [chunk.latents for chunk in found if chunk is not None] + list(kept.state.in_flight.values())
    assert distance(torch.cat(latents, dim=2), expected) < 1e-5


def test_layers_are_dealt_out_evenly() -> None:
    assert [share_of(7, rank, 3) for rank in range(3)] == [range(2), range(2, 4), range(4, 7)]
    with pytest.raises(MagiError, match="fewer devices"):
        share_of(3, 0, 4)


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_a_device_reads_its_own_layers_only(weights: Place) -> None:
    """Two shares one behind the other are the model, to the bit."""
    files = find_checkpoint("nano")
    whole = load_dit(files)
    build = FromFiles(files, weights=weights)
    parts = [build(torch.device("cpu"), (i, 2)) for i in range(2)]
    names = {f"videodit_blocks.layers.{i}." for i in share_of(whole.config.num_layers, 1, 2)}
    held = [{name for name in part.state_dict() if ".layers." in name} for part in parts]
    assert weights == "streamed" or (all(name.startswith(tuple(names)) for name in held[1]) and not held[0] & held[1])
    x = torch.randn(1, whole.config.latent_channels, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    given = {
        "y": whole.null_caption[None, :5],
        "y_mask": torch.ones(1, 5),
        "dropped": True,
        "chunk_index": [0],
        "kv_range": [(0, 2 * 4)],
    }
    with torch.no_grad():
        expected = whole(x, torch.zeros(1, 1), **given)
        passed = parts[0].start(x, torch.zeros(1, 1), **given)
        for part in parts:
            part.through([passed])
        assert torch.equal(parts[1].velocity(passed), expected)
