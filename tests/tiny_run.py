"""A model so small that a whole video takes a tenth of a second, with latents that stand for their own pixels: for runs on disk.

As a script: ``python tests/tiny_run.py FOLDER KILLS SEED`` kills runs with SIGKILL at random moments, lets others go on, and compares
what they made with a run that was left alone. Processes are forked, so that PyTorch is imported once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magi_core.config import DiTConfig, Sampling
from magi_core.growing_mp4 import fragments_of
from magi_core.images import Frames
from magi_core.keeping import Asked, Run
from magi_core.live import Live, LiveChunk, produce
from magi_core.making import Making
from magi_core.model import MagiDiT
from magi_core.plan import plan
from magi_core.storyboard import Storyboard
from magi_core.text.caption import Caption

CONFIG = DiTConfig(
    num_layers=2,
    hidden_size=16,
    ffn_hidden_size=16,
    num_attention_heads=2,
    num_query_groups=1,
    kv_channels=8,
    in_channels=3,
    out_channels=3,
    caption_channels=4,
    caption_max_length=60,
    params_dtype=torch.float32,
)
SAMPLING = Sampling(num_steps=4, window_size=2, noise2clean_kvrange=(3, 3), clean_chunk_kvrange=2)
STORY = "1s: a\n1s: b\n1s: c\n2.4s: d"
CHUNKS = 6
SIDE = 4
PIXELS = 8
"""Of a latent."""


def model() -> MagiDiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MagiDiT(CONFIG).requires_grad_(False)


def add(making: Making, story: str, prefix_frames: int = 0) -> None:
    layout = plan(Storyboard.from_string(story), prefix_frames=prefix_frames)
    words = {
        prompt: torch.randn(3, 4, generator=torch.Generator().manual_seed(ord(prompt))) for prompt in layout.prompts
    }
    making.add(layout, [Caption(words[prompt], torch.ones(3)) for prompt in layout.prompts])


def begin(dit: MagiDiT, story: str = STORY, seed: int = 1, prefix: Tensor | None = None) -> Making:
    making = Making.start(dit, SAMPLING, height=SIDE, width=SIDE, seed=seed, prefix=prefix)
    add(making, story)
    return making


def decode(latents: Tensor) -> Frames:
    """Every latent a block of one colour, four frames long."""
    colours = (latents[0] * 40 + 128).clamp(0, 255).to(torch.uint8).movedim(0, -1)
    for dim, times in ((0, 4), (1, PIXELS), (2, PIXELS)):
        colours = colours.repeat_interleave(times, dim=dim)
    return np.ascontiguousarray(colours.numpy())


def asked(**changes: object) -> Asked:
    return Asked(storyboard=Storyboard.from_string(STORY).to_json(), model="tiny", metadata={"prompt": "{}"}, **changes)  # type: ignore[arg-type]


def make(run: Run, making: Making, on_chunk: Callable[[LiveChunk], None] | None = None) -> None:
    with Live(decode, run=run, on_chunk=on_chunk) as live:
        for _ in produce(making, run=run, live=live):
            pass


def make_or_go_on(dit: MagiDiT, folder: Path) -> None:
    """What a process does that is started again and again."""
    if (folder / "run.json").exists():
        run = Run.open(folder)
        making = run.load(dit)
    else:
        making = begin(dit)
        run = Run.create(folder, asked(), making)
    make(run, making)


def content(folder: Path) -> dict[str, bytes]:
    """What must be the same however often a run was broken off."""
    files = [folder / "video.mp4", *sorted((folder / "chunks").glob("[0-9]*"))]
    return {path.name: path.read_bytes() for path in files}


def forked(work: Callable[[], None], patience: float) -> bool:
    """Whether ``work`` ended by itself, in a process of its own, before it was killed after ``patience`` seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "a run failed"
            return True
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def kill_at_random(root: Path, kills: int, seed: int) -> None:
    """Raises AssertionError where a killed run lost a chunk, or ended in other bytes."""
    dit, chance = model(), random.Random(seed)
    began = time.monotonic()
    assert forked(lambda: make_or_go_on(dit, root / "alone"), 600)
    alone, seconds = content(root / "alone"), time.monotonic() - began
    assert len(alone) == 1 + CHUNKS
    killed = runs = 0
    while killed < kills:
        folder = root / f"killed_{runs}"
        runs += 1
        chunks = shown = 0
        while not forked(lambda folder=folder: make_or_go_on(dit, folder), chance.uniform(0, seconds)):
            killed += 1
            had = [path.name for path in (folder / "chunks").glob("[0-9]*")]
            assert len(had) >= chunks and len(fragments_of(folder / "video.mp4")) >= shown, (
                "something finished was lost"
            )
            chunks, shown = len(had), len(fragments_of(folder / "video.mp4"))
            assert all((folder / "chunks" / name).read_bytes() == alone[name] for name in had)
        assert content(folder) == alone, f"{folder} ended in other bytes"
    sys.stdout.write(f"{killed} kills in {runs} runs of {seconds:.2f} s\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_at_random(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
