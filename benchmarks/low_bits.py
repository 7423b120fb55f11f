"""What fewer bits cost: magi-nano's videos in bfloat16, with fp8 matrices, and with int8 attention, beside float32.

    python benchmarks/low_bits.py [--steps 8 32] [--videos 4] [--output benchmarks/results/low_bits_cpu.json]

The PSNR of the frames against those of float32 from the same noise: the median of the videos, and the worst. The int8 attention is what our
Triton kernel computes, written in plain torch (tests/kernels/int8_numbers.py holds the kernel to it), so this runs without a GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_record
from reuse import STORIES, psnr
from torch import Tensor

import magi_core
from magi_core.images import Frames
from magi_core.kernels import AttnRange, attend
from magi_core.pipeline import Magi


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "low_bits_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    exact = magi_core.load("nano", device="cpu")
    others = {
        "bfloat16": magi_core.load("nano", device="cpu", dtype=torch.bfloat16),
        "fp8 matrices": magi_core.load("nano", device="cpu", fp8=True),
        "int8 attention": magi_core.load("nano", device="cpu"),
    }
    others["int8 attention"].dit.attend = attend_rounded
    figures: dict[str, Any] = {"videos": arguments.videos}
    for steps in arguments.steps:
        plain = [made(exact, steps, i) for i in range(arguments.videos)]
        for name, magi in others.items():
            found = [psnr(frames, made(magi, steps, i)) for i, frames in enumerate(plain)]
            figures[f"{steps} steps, {name}"] = said = {
                "PSNR dB": round(statistics.median(found), 1),
                "worst PSNR dB": round(min(found), 1),
            }
            print(steps, name, said, flush=True)
            write_record(arguments.output, figures)


def attend_rounded(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange]) -> Tensor:
    """``attend`` of queries and keys as their int8 rows stand for them, the keys' mean (which moves no weight) taken off."""
    return attend(rounded(q), rounded(k - k.mean(0)), v, ranges)


def rounded(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (x / scale + 0.5).floor() * scale


def made(magi: Magi, steps: int, number: int) -> Frames:
    """A story's frames."""
    sampling = magi.config.sampling.changed(steps=steps)
    generation = magi.generate(STORIES[number % len(STORIES)], seed=number, sampling=sampling)
    decode = magi.decoder()
    return np.concatenate([decode(chunk.latents) for chunk in generation.making.session.chunks()])


if __name__ == "__main__":
    main()
