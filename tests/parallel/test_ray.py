"""Whole generations by workers on a Ray cluster against those of one process; skipped where Ray is not installed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from magi_core.checkpoint.find import find_checkpoint
from magi_core.denoise.session import Session
from magi_core.errors import MagiError
from magi_core.parallel import FromFiles, Strategy, launch_ray, start
from magi_core.parallel.devices import home, parse_devices
from magi_core.parallel.launch_ray import OnRay, RayCrew, on_ray
from magi_core.text.assembly import null_caption
from tests.parallel.jobs import Jobs, random_model
from tests.parallel.test_engine import BASE, CONFIG, SIZE, condition, distance, engine, make

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed: pip install 'comfyui-magi[cluster]'"
)
PATIENCE = 240.0
"""Seconds that anything may take on a machine that is busy."""


@pytest.fixture(scope="module")
def crew() -> Iterator[RayCrew]:
    """Two workers on a cluster of their own."""
    workers = RayCrew(Jobs, ["ray:cpu"] * 2)
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of somebody's cluster."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        process = context.Process(target=keep_cluster, args=(theirs, folder))
        process.start()
        theirs.close()
        assert ours.poll(PATIENCE)
        yield ours.recv()
        ours.close()
        process.join(PATIENCE)
        assert process.exitcode == 0


def keep_cluster(pipe: Connection, folder: str) -> None:
    import ray

    options = {"include_dashboard": False, "_temp_dir": folder, "_system_config": {"worker_niceness": 0}}
    ray.init(address="local", num_cpus=2, num_gpus=0, **options)
    pipe.send(ray.get_runtime_context().gcs_address)
    try:
        pipe.recv()
    except EOFError:
        assert len(ray.nodes()) == 1 and ray.nodes()[0]["Alive"]  # whoever came and went left it as it was
        ray.shutdown()


@needs_ray
@pytest.mark.parametrize("strategy", [Strategy(passes=2), Strategy(stages=2), Strategy(pipeline=2)], ids=str)
def test_a_generation_equals_that_of_one_process(strategy: Strategy, crew: RayCrew) -> None:
    """And Ray is nowhere but in processes of its own."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    with engine(crew, CONFIG, strategy) as runners:
        latents, _ = make(CONFIG, BASE, "text", runners.runner)
    assert distance(latents, make(CONFIG, BASE, "text", None)[0]) < 1e-5
    assert dict(os.environ) == environment and signal.getsignal(signal.SIGTERM) is handler
    assert "ray" not in sys.modules


@needs_ray
def test_broken_off_and_killed_no_chunk_is_lost(crew: RayCrew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is broken off changes nothing; a killed worker is an error, and the session goes on without it. All end together."""
    expected, _ = make(CONFIG, BASE, "text", None)
    model = random_model(CONFIG)
    session = Session(model, BASE, height=SIZE[0], width=SIZE[1], seed=3, null=null_caption(model.null_caption))
    session.run_by(engine(crew, CONFIG, Strategy()).runner)
    session.add([condition(chunk) for chunk in range(4)])
    found = [session.step(drain=False)]
    before = session.state

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(crew._driver, "_answers", interrupted)  # while the workers compute
        session.step(drain=False)
    assert session.state is before
    found.append(session.step(drain=False))
    session.save(Path(crew._folder.name) / "a.session")
    kept, _, _ = Session.load(Path(crew._folder.name) / "a.session", model)

    before = session.state
    os.kill(crew.call("run", "pid")[1], signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(MagiError, match=r"worker 1 on the host .* ended unexpectedly"):
        session.step(drain=False)
    assert time.monotonic() - begun < PATIENCE / 4 and session.state is before and not crew.alive
    with pytest.raises(MagiError, match="start the devices again"):
        session.step(drain=False)
    chunks = [chunk.latents for chunk in [*found, *kept.run(drain=False)] if chunk is not None]
    assert distance(torch.cat(chunks + list(kept.state.in_flight.values()), dim=2), expected) < 1e-5

    folder = crew._folder.name
    assert not Path(folder).exists()
    while running(folder):
        assert time.monotonic() - begun < PATIENCE


def running(folder: str) -> list[str]:
    """Commands of processes that belong to the cluster in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it has just ended
        found += [command] if folder in command else []
    return found


@needs_ray
def test_workers_on_a_cluster_that_is_there(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as its user, who has the token in a file
    files = replace(find_checkpoint("nano"), dit=tmp_path / "not_here.safetensors")
    with pytest.raises(MagiError, match=r"worker \d on the host .*not_here.*same path on every host"):
        start(FromFiles(files), [f"ray:cpu@{cluster}"] * 2)
    with pytest.raises(MagiError, match="needs a GPU; the Ray cluster has 0"):
        start(FromFiles(files), [f"ray:cuda@{cluster}"])
    begun = time.monotonic()
    with pytest.raises(MagiError, match=r"the Ray cluster at 127\.0\.0\.1:1 cannot be joined: .*refused"):
        start(FromFiles(files), ["ray:cpu@127.0.0.1:1"])
    assert time.monotonic() - begun < PATIENCE / 4, "Ray itself would try for minutes"


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_ray, "find_spec", lambda _: None)
    with pytest.raises(MagiError, match=r"comfyui-magi\[cluster\]"):
        RayCrew(Jobs, ["ray:cpu"])


def test_devices_on_ray_are_named_with_their_number_and_address() -> None:
    assert parse_devices("2xray:cpu", "--devices") == ["ray:cpu", "ray:cpu"]
    there = parse_devices(" 3xray:cuda@10.0.0.1:6379", "--devices")
    assert there == ["ray:cuda@10.0.0.1:6379"] * 3 and home(there) is None
    assert on_ray(there[0]) == OnRay("cuda", "10.0.0.1:6379") and on_ray("cuda:0") is None
    for wrong in (
        "ray",
        "0xray:cpu",
        "ray:0",
        "ray:cpu@",
        "ray:cpu,ray:cuda",
        "ray:cpu,cpu",
        "2xcuda:0",
        "ray:cpu@a b",
    ):
        with pytest.raises(MagiError, match="--devices"):
            parse_devices(wrong, "--devices")
