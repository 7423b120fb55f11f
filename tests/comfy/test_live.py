"""What a running server says while a video is made, to a page and to a program: docs/live.md, held to the letter.

How long the video is over which memory must be flat: ``MAGI_CHUNKS`` (default 60; 200 takes a minute where nothing else runs).
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from magi_core.run_lock import alone
from tests.comfy.filming import about, answer, chunks, known, moment, until_paused
from tests.comfy.graphs import extend, node, pictures, show, story, text_to_video
from tests.comfy.server import Prompt, Run, Server, WebSocket
from tests.comfy.test_endurance import resident
from tests.comfy.test_nodes import frames

CHUNKS = int(os.environ.get("MAGI_CHUNKS", "60"))
FOUR = "2s: a red circle moves right\n2s: the circle turns blue"


def film(text: str = FOUR, **changes: Any) -> Prompt:
    """With a VAE wired in, so that chunks are shown."""
    return {**text_to_video(text, **{"vae": ["vae", 0], **changes}), **pictures("made")}


def packets(video: bytes) -> list[bytes]:
    """The encoded frames of a video."""
    with av.open(io.BytesIO(video)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]


def test_events_come_in_order_and_say_everything(server: Server) -> None:
    prompt = film(seed=100)
    run = server.run(prompt)
    assert run.status == "success", run.error
    told = [(kind, data) for kind, data in run.messages if kind.startswith("magi.")]
    first, last = told[0], told[-1]
    assert first[0] == last[0] == "magi.run"
    start, end = first[1], last[1]
    assert (start["state"], start["first"], start["end"], start["next"], start["video"]) == ("running", 0, 4, 0, None)
    assert start["shots"] == [
        {"prompt": "a red circle moves right", "start": 0.0, "end": 2.0},
        {"prompt": "the circle turns blue", "start": 2.0, "end": 4.0},
    ]
    assert (start["fps"], start["width"], start["height"], start["window"], start["seed"]) == (24.0, 64, 64, 4, 100)
    assert (end["state"], end["next"], end["error"], end["warning"]) == ("finished", 4, None, None)
    assert all(data["node"] == "made" and data["run"] == start["run"] for _, data in told)
    assert start["prompt_id"] == run.prompt_id
    seen = chunks(run)
    assert [(c["index"], c["shot"], c["start"], c["end"], c["frames"]) for c in seen] == [
        (0, 0, 0.0, 1.0, 24),
        (1, 0, 1.0, 2.0, 24),
        (2, 1, 2.0, 3.0, 24),
        (3, 1, 3.0, 4.0, 24),
    ]
    steps = [data for kind, data in told if kind == "magi.step"]
    assert (steps[-1]["step"], steps[-1]["steps"], steps[-1]["seconds_left"]) == (7, 7, 0.0)
    assert [data["step"] for data in steps] == sorted(data["step"] for data in steps)
    shown = frames(server, run)
    for chunk in seen:  # the strip shows the chunk's frames
        strip = chunk["strip"]
        picture = np.asarray(Image.open(io.BytesIO(server.view(strip))))
        assert picture.shape == (strip["rows"] * strip["height"], strip["columns"] * strip["width"], 3)
        cells = picture.reshape(strip["rows"], strip["height"], strip["columns"], strip["width"], 3).swapaxes(1, 2)
        own = shown[chunk["index"] * 24 :][:24].astype(int)
        assert np.abs(cells.reshape(-1, 64, 64, 3) - own).mean() < 12
    with av.open(io.BytesIO(server.view(end["video"]))) as video:
        assert json.loads(video.metadata["prompt"]) == prompt
        assert sum(1 for _ in video.decode(video=0)) == 96


def test_a_video_grows_and_every_client_sees_it_and_a_refresh_restores_it(server: Server) -> None:
    other: list[dict[str, Any]] = []

    def listen(stream: WebSocket) -> None:
        while not other or other[-1]["data"].get("state") not in ("finished", "failed", "stopped"):
            message = stream.receive(60)
            if isinstance(message, dict) and message["type"].startswith("magi."):
                other.append(message)

    looks: list[dict[str, Any]] = []

    def look(run: Run) -> None:
        if until_paused(run, len(looks) + 1):
            looks.append(known(server, about(run)["run"]))
            looks[-1]["playable"] = len(packets(server.view(looks[-1]["video"])))
            answer(server, about(run)["run"], action="approve")

    with WebSocket(server.port, "another-tab") as stream:
        thread = threading.Thread(target=listen, args=(stream,))
        thread.start()
        run = server.run(film(seed=101, review_every=1), look)
        thread.join(60)
    own = [{"type": kind, "data": data} for kind, data in run.messages if kind.startswith("magi.")]
    assert other == own
    assert [len(seen["chunks"]) for seen in looks] == [1, 2, 3, 4] == [seen["next"] for seen in looks]
    assert [seen["playable"] for seen in looks] == [24, 48, 72, 96]
    assert looks[1]["chunks"] == chunks(run)[:2] and looks[1]["state"] == "paused"
    assert looks[1]["steps"]["steps"] == 7


def test_the_box_is_told_of_under_its_own_id(server: Server) -> None:
    box = node("MagiVideo", storyboard=FOUR, model="magi-nano", width=64, height=64, seed=102)
    run = server.run({"box": box, "last": node("SaveImage", images=["box", 1], filename_prefix="test/box")})
    assert run.status == "success", run.error
    assert {data["node"] for kind, data in run.messages if kind.startswith("magi.")} == {"box"}
    assert len(chunks(run)) == 4


def test_without_a_vae_chunks_are_kept_and_not_shown(server: Server) -> None:
    run = server.run({**text_to_video(FOUR, seed=103), **pictures("made")})
    assert [chunk["strip"] for chunk in chunks(run)] == [None] * 4
    told = about(run)
    assert (told["previews"], told["video"]) == (False, None)
    kept = server.base / "output" / told["folder"]
    assert len(list((kept / "chunks").iterdir())) == 4 and not (kept / "video.mp4").exists()


@pytest.fixture
def settings(server: Server) -> Iterator[Path]:
    """ComfyUI's settings file, as it was afterwards."""
    file = server.base / "user" / "default" / "comfy.settings.json"
    before = file.read_bytes() if file.exists() else b"{}"
    yield file
    file.write_bytes(before)


def test_settings_switch_previews_off_and_bound_the_folder(server: Server, settings: Path) -> None:
    server.post("settings", {"MAGI.Preview": False})
    unseen = about(server.run(film(seed=104)))
    assert unseen["video"] is None and not unseen["previews"]
    server.post("settings", {"MAGI.Preview": True, "MAGI.PreviewHeight": 64, "MAGI.RunFolderLimit": 0.0001})
    run = server.run(film("1s: a red circle moves right", seed=105, width=128, height=128))
    assert (chunks(run)[0]["strip"]["width"], chunks(run)[0]["strip"]["height"]) == (64, 64)
    assert not (server.base / "output" / unseen["folder"]).exists(), "older finished runs are removed"
    assert (server.base / "output" / about(run)["folder"]).exists()


def test_a_video_that_was_begun_with_previews_is_finished_without(server: Server, settings: Path) -> None:
    def stop(run: Run) -> None:
        if until_paused(run, 1):
            answer(server, about(run)["run"], action="stop")

    server.run(film(seed=115, review_every=2), stop)
    server.post("settings", {"MAGI.Preview": False})
    run = server.run(film(seed=115))
    told = about(run)
    assert told["state"] == "finished" and not told["previews"]
    assert [chunk["strip"] for chunk in chunks(run)] == [None] * 4 and len(packets(server.view(told["video"]))) == 96
    assert told["run"] not in {run["run"] for run in server.get("magi/unfinished")["runs"]}


def test_what_was_decoded_is_not_decoded_again(server: Server) -> None:
    prompt = film(seed=106)
    prompt["decoded"] = node("MagiDecodeVideo", latent=["made", 0], vae=["vae", 0], fps=24.0)
    more = {"filename_prefix": "test/decoded", "format": "auto", "codec": "auto"}
    prompt["saved"] = node("SaveVideo", video=["decoded", 0], **more)
    prompt["last"] = node("SaveImage", images=["decoded", 1], filename_prefix="test/last")
    run = server.run(prompt)
    assert packets(server.view(run.files("saved")[0])) == packets(server.view(about(run)["video"]))
    difference = frames(server, run, "last")[0].astype(int) - frames(server, run)[-1].astype(int)
    assert np.abs(difference).max() <= 1, "core rounds down"


# Where nothing can be written


def test_a_run_goes_on_in_memory_where_the_folder_cannot_be_written(server: Server) -> None:
    output = server.base / "output"
    (output / "magi").mkdir(parents=True, exist_ok=True)
    (output / "magi").rename(output / "magi-aside")
    (output / "magi").write_text("in the way")
    try:
        prompt = {**film(seed=107), **story("1s: it moves up", "next")}
        prompt |= {"more": extend("next_said", session=["made", 1]), **pictures("more", "b")}
        run = server.run(prompt)
    finally:
        (output / "magi").unlink()
        (output / "magi-aside").rename(output / "magi")
    told = about(run, "made")
    assert (told["state"], told["folder"], told["video"]) == ("finished", None, None)
    assert "cannot keep a run" in told["warning"] and "memory" in told["warning"]
    assert [chunk["strip"] is not None for chunk in chunks(run, "made")] == [True] * 4
    whole = server.run(film(seed=107))
    assert np.array_equal(frames(server, run), frames(server, whole))
    assert frames(server, run, "b").shape[0] == 24


def test_where_nothing_temporary_can_be_written_only_previews_are_missing(server: Server) -> None:
    temporary = server.base / "temp" / "magi"
    temporary.mkdir(parents=True, exist_ok=True)
    temporary.rename(temporary.with_name("aside"))
    temporary.write_text("in the way")
    try:
        run = server.run(film("1s: a red circle moves right", seed=116))
    finally:
        temporary.unlink()
        temporary.with_name("aside").rename(temporary)
    assert frames(server, run).shape[0] == 24 and chunks(run)[0]["strip"] is None


def test_a_folder_that_is_taken_away_meanwhile_is_said_and_loses_nothing(server: Server) -> None:
    whole = frames(server, server.run(film(seed=108)))
    taken: list[Path] = []

    def break_and_mend(run: Run) -> None:
        folder = server.base / "output" / about(run)["folder"] / "chunks" if about(run) else None
        if folder is not None and until_paused(run, 1 + len(taken)):
            taken.append(folder)
            aside = folder.with_name("aside")
            if len(taken) == 1:
                folder.rename(aside)
                folder.write_text("in the way")
            if len(taken) == 3:
                folder.unlink()
                aside.rename(folder)
            answer(server, about(run)["run"], action="approve")

    run = server.run(film(seed=108, review_every=1, on_repeat="start over"), break_and_mend)
    assert run.status == "success", run.error
    assert np.array_equal(frames(server, run), whole)
    warnings = [data["warning"] for kind, data in run.messages if kind == "magi.run"]
    assert any(warning and "cannot write" in warning for warning in warnings) and warnings[-1] is None
    kept = taken[0].parent
    assert len(list((kept / "chunks").iterdir())) == 4 and not list(kept.rglob(".*"))


@pytest.fixture
def small_disk(server: Server) -> Iterator[Path]:
    """A disk of 1 MB in the place of the folder that runs are kept in."""
    folder = server.base / "output" / "magi"
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, text=True)  # noqa: S607
    if mounted.returncode:
        pytest.skip(f"mounting a disk needs rights that are missing here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)  # noqa: S607


def test_a_disk_that_is_full_or_may_only_be_read(server: Server, small_disk: Path) -> None:
    filler, half = small_disk / "filler", re.compile(r"\.[^/]*")
    seen: list[tuple[str | None, list[str]]] = []

    def fill_and_clear(run: Run) -> None:
        if until_paused(run, 1 + len(seen)):
            seen.append(
                (about(run)["warning"], [path.name for path in small_disk.rglob("*") if half.fullmatch(path.name)])
            )
            if len(seen) == 1:
                with suppress(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(b"0" * 512)
            if len(seen) == 3:
                filler.unlink()
            answer(server, about(run)["run"], action="approve")

    run = server.run(film(seed=113, review_every=1), fill_and_clear)
    assert run.status == "success", run.error
    assert seen[0] == (None, [])
    for warning, halves in seen[1:3]:
        assert "No space left on device" in str(warning) and "Free space" in str(warning) and not halves
    told = about(run)
    assert (told["state"], told["warning"]) == ("finished", None)
    kept = small_disk.parent / told["folder"]
    assert len(list((kept / "chunks").iterdir())) == 4 and len(packets(server.view(told["video"]))) == 96

    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)  # noqa: S607
    prompt = {**film(seed=113, on_repeat="start over"), **story("1s: it moves up", "next")}
    again = server.run(prompt | {"more": extend("next_said", session=["made", 1]), **pictures("more", "b")})
    assert again.status == "success", again.error
    assert "Read-only file system" in about(again, "made")["warning"] and about(again, "made")["folder"] is None
    assert np.array_equal(frames(server, again), frames(server, run)) and frames(server, again, "b").shape[0] == 24


def test_a_run_that_another_process_makes_is_refused_and_left_as_it_is(server: Server) -> None:
    prompt_id = server.queue(film(seed=114, review_every=1))
    told = moment(server, prompt_id, "paused")
    answer(server, told["run"], action="stop")
    moment(server, prompt_id, "stopped")
    folder = server.base / "output" / told["folder"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with alone(folder):
        refused = server.run(film(seed=114))
    assert refused.status == "error" and "is being made by another process" in str(refused.error)
    assert "wait for it" in str(refused.error) and about(refused)["state"] == "failed"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    first, second = server.queue(film(seed=114)), server.queue(film(seed=114, review_every=9))
    assert moment(server, second, "finished")["next"] == 4, "on one server the second waits for the first"
    assert server.get(f"history/{first}")[first]["status"]["status_str"] == "success"
    assert [path.name for path in folder.parent.glob(f"{folder.name}*")] == [folder.name], (
        "and goes on with what it made"
    )


# Reviews


def test_a_retry_with_another_seed_and_words_then_stop(server: Server) -> None:
    answers = [
        {"action": "retry", "chunks": 1, "seed": 5},
        {"action": "retry", "chunks": 2, "prompt": "a yellow triangle moves down"},
        {"action": "approve"},
        {"action": "stop"},
    ]

    def review(run: Run) -> None:
        if answers and until_paused(run, 5 - len(answers)):
            answer(server, about(run)["run"], **answers.pop(0))

    long = "2s: a red circle moves right\n4s: the circle turns blue"
    prompt = {**film(long, seed=109, review_every=2), **story("1s: it moves up", "next")}
    run = server.run(prompt | {"more": extend("next_said", session=["made", 1]), **pictures("more", "b")}, review)
    assert run.status == "success", run.error
    told = [data for kind, data in run.messages if kind == "magi.run" and data["node"] == "made"]
    assert told[-1]["state"] == "stopped" and not answers
    assert [data["next"] for data in told if data["state"] == "paused"] == [2, 2, 2, 4]
    takes = {data["take"]: data for data in told}
    assert [takes[take]["seed"] for take in (1, 2, 3)] == [109, 5, 5]
    assert [shot["prompt"] for shot in takes[3]["shots"]] == ["a yellow triangle moves down", "the circle turns blue"]
    kept = frames(server, run)
    assert kept.shape[0] == 96, "what was finished when it was stopped"
    asked = film("2s: a yellow triangle moves down\n4s: the circle turns blue", seed=5, finish=True)
    assert np.array_equal(kept, frames(server, server.run(asked))[:96]), "as if that had been asked for from the start"
    assert frames(server, run, "b").shape[0] == 2 * 24 + 24, "the session has what was left, and what was added"


def test_a_wrong_answer_says_what_is_wrong_and_a_run_that_waits_can_be_cancelled(server: Server) -> None:
    refused: list[tuple[int, str]] = []

    def wrong(**document: Any) -> None:
        try:
            answer(server, str(document.pop("run")), **document)
        except urllib.error.HTTPError as error:
            refused.append((error.code, json.loads(error.read())["error"]))

    started = time.monotonic()
    prompt_id = server.queue(film(seed=110, review_every=1))  # nobody listens
    run = moment(server, prompt_id, "paused")
    name = run["run"]
    wrong(run="no-such-run", action="approve")
    wrong(run=name, action="again")
    wrong(run=name, action="retry", chunks=2)
    wrong(run=name, action="retry", seed=-1)
    wrong(run=name, action="retry", prompt="")
    wrong(run=name, action="approve", shots=3)
    assert [code for code, _ in refused] == [404, 400, 400, 400, 400, 400]
    for (_, message), word in zip(refused[1:], ("action", "chunks", "seed", "prompt", "shots"), strict=True):
        assert word in message
    server.post("interrupt", {"prompt_id": prompt_id})
    assert moment(server, prompt_id, "stopped")["next"] == 1
    wrong(run=name, action="approve")
    assert refused[-1][0] == 409
    assert time.monotonic() - started < 60
    (waiting,) = [run for run in server.get("magi/unfinished")["runs"] if run["run"] == name]
    assert (waiting["done"], waiting["chunks"]) == (1, 4)
    assert waiting["prompt"] == film(seed=110, review_every=1)
    again = server.queue(waiting["prompt"])
    assert moment(server, again, "paused")["next"] == 1, "the pause is found again"
    answer(server, name, action="stop")
    assert moment(server, again, "stopped")["next"] == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_flat(server: Server) -> None:
    held: dict[int, int] = {}

    def weigh(run: Run) -> None:
        done = len(chunks(run))
        if done in (20, CHUNKS):
            held.setdefault(done, resident(server))

    prompt = text_to_video(f"{CHUNKS}s: a red circle moves right", seed=111, vae=["vae", 0])
    prompt["decoded"] = node("MagiDecodeVideo", latent=["made", 0], vae=["vae", 0], fps=24.0)
    more = {"filename_prefix": "test/long", "format": "auto", "codec": "auto"}
    assert server.run({**prompt, "saved": node("SaveVideo", video=["decoded", 0], **more)}, weigh).status == "success"
    print(f"resident memory has grown by {held[CHUNKS] / held[20] - 1:.2%} from chunk 20 to chunk {CHUNKS}")
    assert held[CHUNKS] < 1.03 * held[20], {chunk: f"{size / 2**20:.0f} MB" for chunk, size in held.items()}


def test_core_nodes_take_the_latent(server: Server) -> None:
    assert server.run({**film("1s: a red circle moves right", seed=112), **show("made")}).status == "success"
