"""Nothing is lost: a run that was cancelled, that crashed, or whose checkpoint was damaged, is finished to the same bytes.

How often the server is killed: ``MAGI_KILLS`` (default 2; each costs a start of ComfyUI). ``MAGI_KILLS=50`` hits every kind of moment.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.comfy.conftest import prepare
from tests.comfy.filming import about, answer, chunks, moment, until_paused
from tests.comfy.graphs import extend, loaders, node, pictures, story, text_to_video
from tests.comfy.killing import PACK, check_kept, killed, moments
from tests.comfy.server import Prompt, Run, Server, find_comfyui
from tests.comfy.test_live import FOUR, film, packets
from tests.comfy.test_nodes import frames

KILLS = int(os.environ.get("MAGI_KILLS", "2"))
LONG = "4s: a red circle moves right\n4s: the circle turns blue"
NEXT = "2s: it moves up"


def kept(folder: Path) -> dict[str, bytes]:
    """The video and all chunks of a run."""
    paths = [folder / "video.mp4", *sorted((folder / "chunks").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


def cancel_after(server: Server, done: int) -> object:
    """Cancels a run as soon as so many chunks were shown."""
    cancelled: list[bool] = []

    def watch(run: Run) -> None:
        if len(chunks(run)) >= done and not cancelled:
            cancelled.append(True)
            server.post("interrupt", {"prompt_id": run.prompt_id})

    return watch


def forget(server: Server) -> None:
    """Empty the server's own cache, so that a prompt is run again."""
    server.post("free", {"unload_models": True, "free_memory": True})
    time.sleep(1)  # it does so between two prompts


def broken_off(server: Server, prompt: Prompt, done: int = 2) -> Run:
    run = server.run(prompt, cancel_after(server, done))  # type: ignore[arg-type]
    assert run.status == "interrupted"
    assert about(run)["state"] == "stopped" and about(run)["error"] is None
    return run


def test_a_cancelled_run_is_playable_and_finished_to_the_same_bytes(server: Server) -> None:
    prompt = film(LONG, seed=200, steps=16)
    whole = server.run(prompt)
    folder, pngs = server.base / "output" / about(whole)["folder"], frames(server, whole)
    reference = kept(folder)
    shutil.move(folder, server.base)  # as if it had never been made
    forget(server)
    cancelled = broken_off(server, prompt)
    told = about(cancelled)
    assert 2 <= told["next"] < 8
    assert len(packets(server.view(told["video"]))) == 24 * told["next"], "every finished chunk is in the file"
    assert [run["done"] for run in server.get("magi/unfinished")["runs"] if run["run"] == told["run"]] == [told["next"]]
    rest = server.run(prompt)
    steps = [data["step"] for kind, data in rest.messages if kind == "magi.step"]
    assert steps[0] > 0, "not from the start"
    assert [chunk["index"] for chunk in chunks(rest)] == list(range(8)), "a page sees all of it"
    assert all(chunk["strip"] for chunk in chunks(rest))
    assert kept(folder) == reference
    assert np.array_equal(frames(server, rest), pngs)


def test_the_session_of_a_cancelled_run_goes_on_exactly(server: Server) -> None:
    whole = frames(server, server.run(film(f"{LONG}\n{NEXT}", seed=201)))
    told = about(broken_off(server, film(LONG, seed=201)))
    offered = server.get("object_info/MagiLoadSession")["MagiLoadSession"]["input"]["required"]["session"][1]["options"]
    assert told["session"] in offered
    prompt = {**loaders(), **story(NEXT, "next"), "loaded": node("MagiLoadSession", session=told["session"])}
    prompt |= {"more": extend("next_said", session=["loaded", 0], vae=["vae", 0]), **pictures("more")}
    more = server.run(prompt)
    assert np.array_equal(frames(server, more), whole[24 * told["next"] :])
    assert about(more)["first"] == told["next"], "the numbers of the whole video"


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(server: Server) -> None:
    reference = frames(server, server.run(film(LONG, seed=202)))
    told = about(broken_off(server, film(LONG, seed=202, on_repeat="start over"), 3))
    newest = max((server.base / "output" / told["folder"] / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    forget(server)
    run = server.run(film(LONG, seed=202))
    assert np.array_equal(frames(server, run), reference)
    assert newest.name in about(run)["warning"] and "damaged" in about(run)["warning"]
    assert about(run)["take"] == told["take"], "the same run"


def test_a_damaged_chunk_is_named_and_another_take_made(server: Server) -> None:
    prompt = film(FOUR, seed=207)
    first = server.run(prompt)
    damaged = server.base / "output" / about(first)["folder"] / "chunks" / "000001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    forget(server)
    again = server.run(prompt)
    assert np.array_equal(frames(server, again), frames(server, first))
    assert damaged.name in about(again)["warning"] and about(again)["take"] == 2


def test_what_is_finished_is_not_made_again(server: Server) -> None:
    prompt = film(FOUR, seed=203)
    first = frames(server, server.run(prompt))
    forget(server)
    again = server.run(prompt)
    assert not [data for kind, data in again.messages if kind == "magi.step"]
    assert np.array_equal(frames(server, again), first)
    for changes in ({"seed": 204}, {"steps": 8}, {"finish": False}):
        other = film(f"{FOUR}\n1s: it stops", **{"seed": 203, **changes})
        assert about(server.run(other))["run"] != about(again)["run"]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    found = find_comfyui()
    if isinstance(found, str):
        pytest.skip(found)
    prepare(tmp_path)
    yield tmp_path


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the pack that kills at a moment reads /proc")
def test_a_killed_server_loses_nothing(base: Path) -> None:
    (base / "custom_nodes" / PACK.name).symlink_to(PACK, target_is_directory=True)
    prompt: Prompt = {**text_to_video(LONG, seed=205, steps=16, vae=["vae", 0]), **story(NEXT, "next")}
    prompt |= {**pictures("made", "a"), **pictures("more", "b")}
    prompt["more"] = extend("next_said", session=["made", 1], vae=["vae", 0])
    server, kills, runs, hit = Server(base), 0, 0, Counter[str]()
    try:
        whole = server.run(prompt)
        assert whole.status == "success", whole.error
        folders = {name: base / "output" / about(whole, name)["folder"] for name in ("made", "more")}
        reference = {name: kept(folder) for name, folder in folders.items()}
        pngs = {name: frames(server, whole, name) for name in ("a", "b")}
        had = {name: 0 for name in folders}

        def start_over() -> None:
            """The runs that are finished are looked at, and put out of the way."""
            nonlocal had, runs
            assert {name: kept(folder) for name, folder in folders.items()} == reference
            assert not list((base / "output" / "magi").rglob(".*")), "half a file is left for good"
            runs += 1
            (base / "output" / "magi").rename(base / f"finished {runs}")
            had = {name: 0 for name in folders}
            forget(server)

        start_over()
        for kind in moments(random.Random(7)):
            if kills == KILLS:
                break
            was_killed, heard = killed(server, prompt, kind)
            now = check_kept(folders, reference, heard)
            assert all(now[name] >= had[name] for name in now), "a finished chunk is lost"
            had = now
            if was_killed:
                kills += 1
                hit[kind.name] += 1
                server = Server(base)
            else:  # it was finished before that moment
                assert all(np.array_equal(frames(server, heard, name), pngs[name]) for name in pngs)
                start_over()
        finished = server.run(prompt)
        assert finished.status == "success", finished.error
        assert {name: base / "output" / about(finished, name)["folder"] for name in folders} == folders, "found again"
        assert all(np.array_equal(frames(server, finished, name), pngs[name]) for name in pngs)
        start_over()
        print(f"{kills} kills in {runs - 1} runs: {dict(hit)}")
        # A pause is found again too.
        waiting = film(FOUR, seed=206, review_every=2)
        assert moment(server, server.queue(waiting), "paused")["next"] == 2
        server.kill()
        server = Server(base)
        run = server.run(waiting, lambda run: until_paused(run, 1) and answer_and_go_on(server, run))
        paused = (data["next"] for kind, data in run.messages if kind == "magi.run" and data["state"] == "paused")
        assert list(paused) == [2]
        assert about(run)["state"] == "stopped"
    finally:
        server.stop()


def answer_and_go_on(server: Server, run: Run) -> None:
    answer(server, about(run)["run"], action="stop")
