"""Whole generations by several processes against those of one."""

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
from safetensors.torch import save_file
from torch import Tensor

from magi_core.checkpoint.find import find_checkpoint
from magi_core.config import DiTConfig, Sampling
from magi_core.denoise.guidance import Runner
from magi_core.denoise.session import ChunkCondition, Session
from magi_core.errors import MagiError
from magi_core.golden import Golden
from magi_core.lora import Lora, write_adapter
from magi_core.memory.streaming import Place
from magi_core.parallel.engine import Engine, FromFiles, start
from magi_core.parallel.launch import Spawned
from magi_core.parallel.wire import unpack
from magi_core.parallel.worker import Strategy
from magi_core.text.assembly import null_caption
from magi_core.text.caption import Caption
from magi_core.verify.sampling import loops
from tests.lora.test_lora import adapter_for
from tests.model.conftest import assert_recorded
from tests.parallel.jobs import random_model, recorded_model

CONFIG = DiTConfig(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=64,
    num_attention_heads=8,
    num_query_groups=4,
    kv_channels=8,
    in_channels=2,
    out_channels=2,
    caption_channels=4,
    caption_max_length=20,
    params_dtype=torch.float32,
)
DISTILLED = replace(CONFIG, distill=True)
BASE = Sampling(num_steps=4, chunk_width=1)
"""Chunks of one latent frame: 3 x 5 tokens, which no number of processes divides."""
QUICK = replace(BASE, cfg_number=1)
SIZE = (6, 10)


class Part:
    """The workers of one name in processes that hold several."""

    def __init__(self, crew: Spawned, name: str) -> None:
        self._crew, self._name = crew, name

    @property
    def size(self) -> int:
        return self._crew.size

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return self._crew.call("run", "worker", self._name, method, arguments)

    def close(self) -> None: ...


def engine(crew: Spawned, config: DiTConfig, strategy: Strategy) -> Engine:
    name = repr((config, strategy))
    crew.call("run", "begin", name, partial(random_model, config), strategy)
    return Engine(Part(crew, name), ahead=strategy.pipeline > 1)


def condition(chunk: int, *, image: bool = False) -> ChunkCondition:
    draw = torch.Generator().manual_seed(100 + chunk)
    caption = Caption(torch.randn(3 + chunk % 3, 4, generator=draw), torch.ones(3 + chunk % 3))
    return ChunkCondition(caption, torch.randn(1, 2, 1, *SIZE, generator=draw) if image else None)


def make(config: DiTConfig, sampling: Sampling, kind: str, runner: Runner | None) -> tuple[Tensor, Session]:
    """All latents of a generation from text, from an image, from a video, or in two parts; and its session before it ran dry."""
    model = random_model(config)
    prefix = None if kind != "video" else torch.randn(1, 2, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    session = Session(
        model,
        sampling,
        height=SIZE[0],
        width=SIZE[1],
        seed=3,
        null=null_caption(model.null_caption),
        prefix=prefix,
    )
    if runner is not None:
        session.run_by(runner)
    wanted = [condition(chunk, image=kind == "image" and chunk == 0) for chunk in range(5)]
    session.add(wanted[: 3 if kind == "extension" else 4])
    found = session.run(drain=False)
    if kind == "extension":
        session.add(wanted[3:])
        found += session.run(drain=False)
    state = session.state.cache
    assert state is not None
    latents = torch.cat([chunk.latents for chunk in found] + list(session.state.in_flight.values()), dim=2)
    return latents, session


def distance(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


@pytest.mark.parametrize("kind", ["text", "image", "video", "extension"])
@pytest.mark.parametrize(
    ("crew", "strategy"),
    [
        ("two", Strategy(passes=2)),
        ("two", Strategy(stages=2)),
        ("two", Strategy(exchange="heads")),
        ("four", Strategy(stages=3)),
        ("four", Strategy(exchange="heads")),
        ("four", Strategy(passes=2, stages=2)),
        ("four", Strategy(passes=4)),
    ],
    ids=str,
)
def test_a_generation_equals_that_of_one_process(
    kind: str, crew: str, strategy: Strategy, request: pytest.FixtureRequest
) -> None:
    """Latents, and on every rank the keys and values, after the last step that leaves no window slot empty."""
    workers: Spawned = request.getfixturevalue(crew)
    sampling = replace(BASE, window_size=1) if kind == "image" else BASE
    with engine(workers, CONFIG, strategy) as runners:
        latents, session = make(CONFIG, sampling, kind, runners.runner)
        expected, alone = make(CONFIG, sampling, kind, None)
        assert distance(latents, expected) < 1e-5
        assert alone.state.cache is not None and session.state.cache is not None
        assert session.state.cache.chunks == alone.state.cache.chunks
        for held in runners.crew.call("held"):
            for name, rows in alone.state.cache.state().items():
                assert distance(unpack(held[name]), rows) < 1e-5 or name == "chunks", name


@pytest.mark.parametrize("exchange", ["keys", "heads"])
def test_a_distilled_model_and_bfloat16(exchange: Any, two: Spawned) -> None:
    for config, sampling, limit in (
        (DISTILLED, QUICK, 1e-5),
        (replace(CONFIG, params_dtype=torch.bfloat16), BASE, 2e-2),
    ):
        latents, _ = make(config, sampling, "text", engine(two, config, Strategy(exchange=exchange)).runner)
        assert distance(latents, make(config, sampling, "text", None)[0]) < limit


@pytest.mark.parametrize("line", [False, True], ids=["together", "in a line"])
def test_recorded_generations_by_two_processes(line: bool, two: Spawned, golden: Golden) -> None:
    """The reference's own latents, from recorded noise, within the tolerance of one process."""
    cases = golden.family("loops")
    cases = cases if "MAGI_GOLDEN" in os.environ else cases[line::2]  # of those shipped either half: they take seconds
    assert cases
    for case in cases:
        name, together = case.config, Strategy(passes=2) if "distill" not in case.config else Strategy()
        build = partial(recorded_model, name, str(golden.folder))
        two.call("run", "begin", name, build, Strategy(pipeline=2) if line else together)
        for output, latents in loops(golden, case, Engine(Part(two, name), ahead=line).runner).items():
            assert_recorded(latents, case, output)


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_workers_use_loras(weights: Place, two: Spawned, tmp_path: Path) -> None:
    """Those that have all layers, and those that have some of them only."""
    save_file(random_model(CONFIG).state_dict(), tmp_path / "dit.safetensors")
    write_adapter(tmp_path / "lora.safetensors", adapter_for(CONFIG, size=0.02).layers, "tiny", {})
    nano = find_checkpoint("nano")
    files = replace(nano, dit=tmp_path / "dit.safetensors", config=replace(nano.config, dit=CONFIG))
    build = FromFiles(files, weights=weights, loras=(Lora(tmp_path / "lora.safetensors", 0.5),))
    with start(build, ["cpu"]) as one:
        expected, _ = make(CONFIG, BASE, "text", one.runner)
    assert distance(make(CONFIG, BASE, "text", None)[0], expected) > 0.01
    for strategy in (Strategy(), Strategy(passes=2), Strategy(pipeline=2)):
        two.call("run", "begin", "adapted", build, strategy)
        runners = Engine(Part(two, "adapted"), ahead=strategy.pipeline > 1)
        assert distance(make(CONFIG, BASE, "text", runners.runner)[0], expected) < 1e-5


def test_a_saved_session_goes_on_with_other_workers(two: Spawned, four: Spawned, tmp_path: Path) -> None:
    """Keys and values come back from the workers into the file, and from the file to the next ones, or to none."""
    expected, _ = make(CONFIG, BASE, "text", None)
    model = random_model(CONFIG)
    session = Session(
        model, BASE, height=SIZE[0], width=SIZE[1], seed=3, null=null_caption(model.null_caption),
    )  # fmt: skip
    session.run_by(engine(two, CONFIG, Strategy()).runner)
    session.add([condition(chunk) for chunk in range(4)])
    found = []
    for crew in (None, four, None):
        finished = session.step(drain=False)
        found += [] if finished is None else [finished.latents]
        session.save(tmp_path / "a.session")
        session, _, _ = Session.load(tmp_path / "a.session", model)
        if crew is not None:
            session.run_by(engine(crew, CONFIG, Strategy(exchange="heads")).runner)
    found += [chunk.latents for chunk in session.run(drain=False)]
    latents = torch.cat(found + list(session.state.in_flight.values()), dim=2)
    assert distance(latents, expected) < 1e-5


def test_a_killed_worker_is_an_error_and_no_chunk_is_lost() -> None:
    """While two runs share this process: the other one does not notice. The video goes on with new workers."""
    expected, _ = make(CONFIG, BASE, "text", None)
    build = partial(random_model, CONFIG)
    with start(build, ["cpu", "cpu"]) as doomed, start(build, ["cpu", "cpu"]) as other:
        assert isinstance(doomed.crew, Spawned)
        model = random_model(CONFIG)
        session = Session(
            model,
            BASE,
            height=SIZE[0],
            width=SIZE[1],
            seed=3,
            null=null_caption(model.null_caption),
        )
        session.run_by(doomed.runner)
        session.add([condition(chunk) for chunk in range(4)])
        session.step()
        before = session.state
        environment = dict(os.environ)
        pid = doomed.crew.pids[1]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(MagiError, match=r"worker 1 .*ended unexpectedly"):
            session.step()
        assert time.monotonic() - begun < 5
        assert session.state is before and doomed.crew.pids == [] and other.alive and not doomed.alive
        with pytest.raises(MagiError, match="start the devices again"):
            session.step()
        assert distance(make(CONFIG, BASE, "text", other.runner)[0], expected) < 1e-5
        assert dict(os.environ) == environment


def test_one_device_needs_no_process_and_a_session_comes_home() -> None:
    """To the same bits, with the steps before and after run here."""
    expected, _ = make(CONFIG, BASE, "text", None)
    model = random_model(CONFIG)
    session = Session(model, BASE, height=SIZE[0], width=SIZE[1], seed=3, null=null_caption(model.null_caption))
    session.add([condition(chunk) for chunk in range(4)])
    found = []
    with start(partial(random_model, CONFIG), ["cpu"]) as runners:
        for runner in (None, runners.runner, Runner()):
            if runner is not None:
                session.run_by(runner)
            finished = session.step(drain=False)
            found += [] if finished is None else [finished.latents]
    found += [chunk.latents for chunk in session.run(drain=False)]
    assert torch.equal(torch.cat(found + list(session.state.in_flight.values()), dim=2), expected)
