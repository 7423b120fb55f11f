"""What a running ComfyUI makes again when the same thing is queued again, and what becomes of files that only its cache needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.comfy.filming import about, answer
from tests.comfy.graphs import node, text_to_video
from tests.comfy.server import Prompt, Run, Server
from tests.comfy.test_nodes import frames

ONE = "1s: a red circle moves right"


def box(text: str, **changes: object) -> Prompt:
    """MAGI Video and its last frame."""
    asked = {"storyboard": text, "model": "magi-nano", "width": 64, "height": 64, "seed": 1, **changes}
    shown = node("SaveImage", images=["made", 1], filename_prefix="test/caching")
    return {"made": node("MagiVideo", **asked), "pictures": shown}


def plain(text: str, **changes: object) -> Prompt:
    """The same of Chunk Denoise."""
    prompt = text_to_video(text, vae=["vae", 0], **changes)
    prompt["decoded"] = node("MagiDecodeVideo", latent=["made", 0], vae=["vae", 0], fps=24.0)
    return {**prompt, "pictures": node("SaveImage", images=["decoded", 1], filename_prefix="test/caching")}


def cached(run: Run) -> set[str]:
    """Nodes that were not run again."""
    return {name for kind, data in run.messages if kind == "execution_cached" for name in data["nodes"]}


def paint(file: Path, colour: tuple[int, int, int]) -> None:
    Image.fromarray(np.full((64, 64, 3), colour, np.uint8)).save(file)


@pytest.mark.parametrize(("kind", "reader"), [(box, "made"), (plain, "story")])
def test_a_picture_that_was_replaced_is_read_again(server: Server, kind: Callable[..., Prompt], reader: str) -> None:
    file = server.base / "input" / f"replaced {reader}.png"
    paint(file, (255, 0, 0))
    prompt = kind(f"{ONE} [image: {file.name}]")
    red = frames(server, server.run(prompt))
    assert reader in cached(server.run(prompt)), "nothing changed"
    paint(file, (0, 0, 255))
    again = server.run(prompt)
    assert reader not in cached(again) and not np.array_equal(frames(server, again), red)


@pytest.mark.parametrize("kind", [box, plain])
def test_a_run_that_was_stopped_goes_on_when_it_is_queued_again(server: Server, kind: Callable[..., Prompt]) -> None:
    prompt = kind("2s: a red circle moves right", seed=300, review_every=1)
    for action in ("stop", "approve"):
        run = server.run(prompt, lambda run: reply(server, run, action))
        assert run.status == "success", run.error
    assert about(run)["state"] == "finished" and about(run)["next"] == 2
    assert "made" in cached(server.run(prompt)), "what is finished is finished"


def reply(server: Server, run: Run, action: str) -> None:
    """Answer every pause."""
    kind, data = run.messages[-1]
    if kind == "magi.run" and data["state"] == "paused":
        answer(server, data["run"], action=action)


def test_the_film_of_a_latent_lies_in_the_temporary_folder_while_it_can_be_used(server: Server) -> None:
    prompt = plain(ONE, seed=301)
    saved = {"filename_prefix": "test/saved", "format": "auto", "codec": "auto"}
    assert server.run({**prompt, "saved": node("SaveVideo", video=["decoded", 0], **saved)}).status == "success"
    temporary = server.base / "temp" / "magi"
    assert list(temporary.glob("*.mp4"))
    server.post("free", {"unload_models": True, "free_memory": True})
    until = time.monotonic() + 20
    while list(temporary.glob("*.mp4")):
        assert time.monotonic() < until, "a film that nobody can reach is kept"
        time.sleep(0.1)
