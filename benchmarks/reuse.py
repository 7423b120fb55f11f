"""What using velocities again costs and saves: magi-nano beside itself without it.

    python benchmarks/reuse.py [--steps 8 32 64] [--thresholds 0.02 0.05 0.1 0.2] [--videos 4] [--output benchmarks/results/reuse_cpu.json]

By number of steps and threshold: the share of chunks that were not computed (over all steps), processor seconds without / with, and the
PSNR of the frames against those of the plain run of the same seed (the median of the videos, and the worst). How the videos score is
measured by `magi score --steps 64 --reuse 0.05 --count 200 -o out/score-reuse`, and without --reuse.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_record

import magi_core
from magi_core.denoise.reuse import reuse_in
from magi_core.images import Frames
from magi_core.pipeline import Magi

STORIES = (
    "1s: a red circle moves right\n1s: the circle turns blue\n1s: it moves up\n1s: it stops",
    "1s: a green square moves down\n1s: it moves left\n1s: the square turns yellow",
    "1s: a blue triangle stands still\n1s: it moves right\n1s: it stops",
    "1s: a yellow circle moves left\n1s: the circle turns red\n1s: it moves down",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "reuse_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    magi = magi_core.load("nano", device="cpu")
    figures: dict[str, Any] = {"videos": arguments.videos}
    for steps in arguments.steps:
        plain = [made(magi, steps, None, i) for i in range(arguments.videos)]
        for threshold in arguments.thresholds:
            runs = [made(magi, steps, threshold, i) for i in range(arguments.videos)]
            close = [psnr(a[0], b[0]) for a, b in zip(plain, runs, strict=True)]
            seconds = [sum(run[1] for run in some) for some in (plain, runs)]
            figures[f"{steps} steps, threshold {threshold}"] = found = {
                "chunks not computed": round(statistics.fmean(run[2] for run in runs), 3),
                "times faster": round(seconds[0] / seconds[1], 2),
                "PSNR dB": round(statistics.median(close), 1),
                "worst PSNR dB": round(min(close), 1),
            }
            print(steps, threshold, found, flush=True)
            write_record(arguments.output, figures)


def made(magi: Magi, steps: int, threshold: float | None, number: int) -> tuple[Frames, float, float]:
    """A video's frames, its denoising's seconds of processor time, and the share of chunks that were not computed."""
    sampling = magi.config.sampling.changed(steps=steps)
    generation = magi.generate(STORIES[number % len(STORIES)], seed=number, sampling=sampling)
    reuse = reuse_in(generation.making.session, threshold or 0.0) if threshold is not None else None
    begun = time.process_time()
    latents = [chunk.latents for chunk in generation.making.session.chunks()]
    seconds = time.process_time() - begun
    decode = magi.decoder()
    frames = np.concatenate([decode(chunk) for chunk in latents])
    return frames, seconds, reuse.left_out / (reuse.left_out + reuse.computed) if reuse else 0.0


def psnr(a: Frames, b: Frames) -> float:
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


if __name__ == "__main__":
    main()
