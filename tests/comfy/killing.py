"""Kills a ComfyUI server at moments of every kind while it makes a video, and looks at what is on disk then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Timer
from typing import Any

from magi_core.growing_mp4 import fragments_of
from tests.comfy.filming import chunks
from tests.comfy.server import Prompt, Run, Server

PACK = Path(__file__).parent / "killer_pack"
SECONDS = 300


@dataclass(frozen=True)
class Moment:
    """When a server is killed."""

    name: str
    arranged: dict[str, Any] | None = None
    """What the pack in the server is told, for what nobody outside can hit."""
    steps: int = 0
    """Else: after so many step messages ..."""
    seconds: float = 0.0
    """... and so long."""


def moments(chance: random.Random) -> Iterator[Moment]:
    """All kinds in turn, each at random."""
    for number in count():

        def arranged(name: str, event: str, path: str, most: int = 3, share: float | None = None) -> Moment:
            told = {"event": event, "path": path, "count": chance.randint(1, most)}
            return Moment(name, {**told, "share": chance.random() if share is None else share})

        yield arranged("before the first chunk", "sync", r"/checkpoints/\.000000-", 1)
        yield Moment("in a step", steps=chance.randint(1, 6), seconds=chance.uniform(0, 0.3))
        yield arranged("in a checkpoint", "sync", r"/checkpoints/\.0*[1-9]")
        yield arranged("in a chunk", "sync", "/chunks/")
        yield arranged("in a fragment", "sync", r"/video\.mp4")
        yield Moment("anywhere", seconds=chance.uniform(0, 6))
        yield arranged("before a chunk has its name", "name", "/chunks/", share=0)
        yield arranged("after a chunk", "name", "/chunks/", share=1)
        yield arranged("after a checkpoint", "name", r"/checkpoints/0*[1-9]", share=1)
        yield arranged("after the last chunk", "name", r"/temp/.*\.session", number % 2 + 1, share=number // 2 % 2)


def killed(server: Server, prompt: Prompt, moment: Moment) -> tuple[bool, Run | None]:
    """Whether the server was killed, or the prompt ended before; what was heard of it."""
    heard: list[Run] = []
    timer = Timer(moment.seconds, server.kill)

    def watch(run: Run) -> None:
        heard[:] = [run]
        if (
            moment.steps
            and timer.ident is None
            and sum(kind == "magi.step" for kind, _ in run.messages) >= moment.steps
        ):
            timer.start()

    server.post("test/kill", moment.arranged or {"event": None})
    if moment.arranged is None and not moment.steps:
        timer.start()
    with suppress(OSError, ValueError):  # the connection ends, be it in the middle of a message
        server.run(prompt, watch, SECONDS)
        timer.cancel()
    if timer.ident is not None:
        timer.join()
    if not heard or heard[0].messages[-1][0] != "execution_success":
        server.process.wait(60)
    return server.process.poll() is not None, heard[0] if heard else None


def check_kept(folders: dict[str, Path], references: dict[str, dict[str, bytes]], run: Run | None) -> dict[str, int]:
    """How many chunks each run has. Raises AssertionError where one that was shown is missing, or any byte is another."""
    had = {}
    for node, folder in folders.items():
        reference = references[node]
        paths = sorted((folder / "chunks").glob("[0-9]*"))
        assert all(path.read_bytes() == reference[path.name] for path in paths), "a chunk is another one"
        fragments = fragments_of(folder / "video.mp4")
        if fragments:
            size = fragments[-1].offset + fragments[-1].size
            assert (folder / "video.mp4").read_bytes()[:size] == reference["video.mp4"][:size]
        shown = {f"{chunk['index']:06d}.safetensors" for chunk in chunks(run, node)} if run else set()
        assert shown <= {path.name for path in paths}, "a chunk that was shown is lost"
        assert len(paths) >= len(fragments)
        had[node] = len(paths)
    return had
