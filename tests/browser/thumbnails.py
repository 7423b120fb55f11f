"""Draw the pictures that ComfyUI's Templates show for our workflows: ``python -m tests.browser.thumbnails [NAME ...]``.

Each ``workflows/api/NAME.json`` is run and its video becomes ``workflows/NAME.jpg``: where things went, the later the brighter, above a
strip of its frames.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

from magi_core.video_colours import rgb_of
from tests.comfy.server import ROOT, Server

FOLDER = ROOT / "workflows"
SAVE_VIDEO = "8"
"""The node's number in each of them."""
SIDE, STRIP, GAP = 448, 5, 8
GHOSTS = 9
DIMMEST = 0.16


def read_frames(video: bytes) -> np.ndarray:
    """All frames of a video file, uint8 [T, H, W, 3]."""
    with av.open(io.BytesIO(video)) as container:
        return np.stack([rgb_of(frame) for frame in container.decode(video=0)])


def enlarged(frame: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(frame.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def draw(frames: np.ndarray) -> Image.Image:
    """A picture of a square video, SIDE x SIDE."""
    small = (SIDE - (STRIP + 1) * GAP) // STRIP
    large = SIDE - small - 2 * GAP
    times = np.linspace(0, len(frames) - 1, GHOSTS).round().astype(int)
    trail = np.zeros(frames.shape[1:])
    for time, light in zip(times, np.geomspace(DIMMEST, 1, GHOSTS), strict=True):
        trail = np.maximum(trail, frames[time] * light)
    picture = Image.new("RGB", (SIDE, SIDE), (23, 23, 24))
    picture.paste(Image.new("RGB", (SIDE, large)), (0, 0))
    picture.paste(enlarged(trail, large), ((SIDE - large) // 2, 0))
    for number, time in enumerate(np.linspace(0, len(frames) - 1, STRIP).round().astype(int)):
        picture.paste(enlarged(frames[time], small), (GAP + number * (small + GAP), SIDE - small - GAP))
    return picture


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as base:
        server = Server(Path(base))
        try:
            for path in [FOLDER / "api" / f"{name}.json" for name in names] or sorted((FOLDER / "api").glob("*.json")):
                run = server.run(json.loads(path.read_text(encoding="utf-8")))
                (video,) = run.files(SAVE_VIDEO)
                picture = draw(read_frames(server.view(video)))
                picture.save(FOLDER / f"{path.stem}.jpg", quality=85, optimize=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
