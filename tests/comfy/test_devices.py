"""MAGI Devices in a running ComfyUI: worker processes make the same video, are kept, stopped, killed and let go of."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tests.comfy.graphs import denoise, node, story, text_to_video
from tests.comfy.server import Prompt, Refused, Run, Server

LONG = "30s: a red circle moves right"


@pytest.fixture(autouse=True)
def proc() -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("worker processes are found in /proc")


def shared(text: str, devices: str = "cpu, cpu", strategy: str = "auto", **changes: object) -> Prompt:
    prompt = {
        **text_to_video(text),
        "shared": node("MagiDevices", model=["model", 0], devices=devices, strategy=strategy),
    }
    prompt["made"] = denoise(model=["shared", 0], on_repeat="start over", **changes)
    return {**prompt, "kept": node("SaveLatent", samples=["made", 0], filename_prefix="test/latent")}


def latents(server: Server, run: Run) -> torch.Tensor:
    assert run.status == "success", run.error
    (file,) = run.history["outputs"]["kept"]["latents"]
    return load(server.view(file))["latent_tensor"]


def workers(server: Server) -> set[int]:
    """Processes that the server has spawned and that still run."""
    found = set()
    for children in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text()
                found |= {int(pid)} if "spawn_main" in words else set()
            except OSError:
                continue
    return found


def gone(server: Server, pids: set[int], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while workers(server) & pids:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module", autouse=True)
def nobody_left(server: Server) -> Iterator[None]:
    yield
    server.post("free", {"unload_models": True, "free_memory": True})


def test_two_devices_make_the_video_of_one_and_stay_for_the_next(server: Server) -> None:
    text = "2s: a red circle moves right"
    whole = shared(text, seed=31)
    whole["made"]["inputs"]["model"] = ["model", 0]
    expected = latents(server, server.run(whole))
    assert not workers(server)
    for strategy in ("pipeline", "passes", "keys"):
        found = latents(server, server.run(shared(text, strategy=strategy, seed=31)))
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert len(workers(server)) == 2
    pids = workers(server)
    latents(server, server.run(shared("1s: a blue square", strategy="keys", seed=31)))
    assert workers(server) == pids
    server.post("free", {"unload_models": True})
    assert gone(server, pids)


@pytest.fixture(scope="module")
def ray(server: Server) -> None:
    there = "import importlib.util, sys; sys.exit(importlib.util.find_spec('ray') is None)"
    if subprocess.run([server.python, "-c", there]).returncode:
        pytest.skip("ComfyUI's Python has no Ray: pip install ray")


def test_hosts_of_a_ray_cluster_make_the_video_of_one(server: Server, ray: None) -> None:
    """Ray is started for them, in a process of its own, and ends when ComfyUI wants the room."""
    whole = shared("1s: a red circle moves right", seed=38)
    whole["made"]["inputs"]["model"] = ["model", 0]
    expected = latents(server, server.run(whole))
    before = workers(server)
    found = latents(server, server.run(shared("1s: a red circle moves right", devices="2xray:cpu", seed=38)))
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    (driver,) = workers(server) - before
    server.post("free", {"unload_models": True})
    assert gone(server, {driver}, 60)


def test_a_cluster_is_joined_that_is_listed_on_this_computer_and_no_other(server: Server, ray: None) -> None:
    prompt = shared("1s: a blue square", devices="2xray:cpu@127.0.0.1:1")
    with pytest.raises(Refused) as refused:
        server.run(prompt)
    assert "127.0.0.1:1, which this ComfyUI does not know; if you trust it" in refused.value.reasons
    listed = server.base / "user" / "magi" / "ray_clusters.txt"
    assert str(listed) in refused.value.reasons
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("127.0.0.1:1\n")
    assert "the Ray cluster at 127.0.0.1:1 cannot be joined" in str(server.run(prompt).error)


def test_a_session_goes_on_without_the_devices(server: Server) -> None:
    made = shared("4s: a red circle moves right", seed=32, finish=False)
    made |= {**story("1s: it turns blue", "next")}
    rest = {"seed": 7, "fit": "crop", "finish": True, "more_to_come": 0, "conditioning": ["next_said", 0]}
    made["more"] = node("MagiExtendVideo", model=["model", 0], session=["made", 1], **rest)
    made["kept"]["inputs"]["samples"] = ["more", 0]
    found = latents(server, server.run(made))
    made["made"]["inputs"]["model"] = ["model", 0]
    made["more"]["inputs"]["on_repeat"] = "start over"
    expected = latents(server, server.run(made))
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_interrupt_leaves_the_workers_ready(server: Server) -> None:
    stopped: list[int] = []

    def stop(run: Run) -> None:
        if run.progress("made") and not stopped:
            stopped.append(run.progress("made")[-1][0])
            server.post("interrupt", {"prompt_id": run.prompt_id})

    assert server.run(shared(LONG, seed=33), stop).status == "interrupted"
    pids = workers(server)
    assert len(pids) == 2
    latents(server, server.run(shared("1s: a blue square", seed=34)))
    assert workers(server) == pids


def test_a_killed_worker_is_an_error_and_the_next_prompt_has_others(server: Server) -> None:
    killed: list[float] = []
    before: set[int] = set()

    def kill(run: Run) -> None:
        if run.progress("made") and not killed:
            before.update(workers(server))
            killed.append(time.monotonic())
            os.kill(max(before), signal.SIGKILL)

    prompt = shared(LONG, seed=35)
    run = server.run(prompt, kill)
    assert run.status == "error" and time.monotonic() - killed[0] < 10
    assert run.error is not None and "ended unexpectedly" in run.error
    assert gone(server, before)
    latents(server, server.run(shared("1s: a blue square", seed=36)))
    assert len(workers(server)) == 2 and not workers(server) & before


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"devices": "gpu"}, "write them like"),
        ({"devices": "cuda:77"}, "devices names cuda:77; this computer has"),
        ({"strategy": "luck"}, "luck"),
    ],
)
def test_devices_that_are_not_there_are_refused(server: Server, inputs: dict[str, str], message: str) -> None:
    with pytest.raises(Refused) as refused:
        server.run(shared("1s: a blue square", **inputs))
    assert message in refused.value.reasons


def test_a_way_that_the_model_does_not_have_is_an_error(server: Server) -> None:
    run = server.run(shared("1s: a blue square", strategy="heads"))
    assert run.error is not None and "2 devices cannot share this model by heads" in run.error


def test_auto_on_a_computer_with_one_device_changes_nothing(server: Server) -> None:
    if torch.cuda.device_count() > 1:
        pytest.skip("there are several GPUs")
    before = workers(server)
    latents(server, server.run(shared("1s: a blue square", devices="auto", seed=37)))
    assert not workers(server) - before
