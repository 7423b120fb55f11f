"""What a LoRA learns from twenty clips: the shipped magi-nano is taught crosses, which it has never seen.

    python benchmarks/lora_shape.py [--folder out/lora-shape] [--steps 400] [--rank 16] [--count 60] [--denoise-steps 16] [--output benchmarks/results/lora_shape_cpu.json]

Writes 20 clips of three seconds with their captions to a folder, trains on it with the command that people use, and asks for one second of
crosses, and of the shapes that were known, in held-back wordings and from unseen seeds: how often is the shape, the colour, the direction as
asked, with the LoRA and without? The clips show crosses only: what becomes of the other shapes is part of the answer. In the folder, clips,
LoRA and a contact sheet remain.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_record

import magi_core
from magi_core.cli import main as magi_command
from magi_core.config import Sampling
from magi_core.evaluation.cases import Case, Request, lone_clip, prompts_of
from magi_core.evaluation.intervals import Share
from magi_core.evaluation.score import measure
from magi_core.images import contact_sheet, write_png
from magi_core.lora import Lora
from magi_core.pipeline import Magi
from magi_core.storyboard import Shot, Storyboard
from magi_core.video import VideoWriter
from magi_core.worlds.captions import caption_clip
from magi_core.worlds.clips import DIRECTIONS, NARROW, World, render, sample_clip
from magi_core.worlds.shapes import NEW_SHAPE, SHAPES

CLIPS, SECONDS = 20, 3
LEARNT, UNSEEN = 7, 30_000_001
"""Seeds of the clips and of what is asked for."""
TAUGHT = replace(NARROW, shapes=(NEW_SHAPE,))
SHOWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/lora-shape"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--denoise-steps", type=int, help="default: the model's")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "lora_shape_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.folder
    lora = folder / f"{NEW_SHAPE}.safetensors"
    if not (folder / "clips").exists():
        write_clips(folder / "clips")
    begun = time.process_time()
    words = [
        "finetune",
        folder / "clips",
        "--lora",
        arguments.rank,
        "--steps",
        arguments.steps,
        "--samples",
        0,
        "-o",
        lora,
    ]
    if magi_command([str(word) for word in words]):
        raise SystemExit("the training failed")
    figures: dict[str, Any] = {
        "clips": CLIPS,
        "steps": arguments.steps,
        "rank": arguments.rank,
        "megabytes": round(lora.stat().st_size / 1e6, 2),
        "processor seconds of training": round(time.process_time() - begun),
        "generations of each kind": arguments.count,
        "denoise steps": arguments.denoise_steps or "the model's",
    }
    rows = []
    for strength in arguments.strengths:
        magi = magi_core.load("nano", device="cpu", loras=[Lora(lora, strength)])
        for name, world in (("crosses", TAUGHT), ("known shapes", NARROW)):
            cases = asked(world, arguments.count)
            sampling = magi.config.sampling.changed(steps=arguments.denoise_steps)
            videos = [made(magi, case.request, sampling) for case in cases]
            figures[f"{name}, strength {strength:g}"] = found = shares(cases, videos)
            print(name, strength, found, flush=True)
            write_record(arguments.output, figures)
            rows += [
                (f"{strength:g}: {c.request.prompts[0]}", v) for c, v in zip(cases[:SHOWN], videos[:SHOWN], strict=True)
            ]
    write_png(folder / "sheet.png", contact_sheet(rows))


def write_clips(folder: Path) -> None:
    """Videos of crosses, and beside each its captions, one line a second."""
    for index in range(CLIPS):
        rng = np.random.default_rng([LEARNT, index])
        clip = replace(sample_clip(TAUGHT, SECONDS, rng), hold=0)
        with VideoWriter(folder / f"{NEW_SHAPE}-{index:02d}.mp4", fps=24) as writer:
            writer.append(render(clip))
        (folder / f"{NEW_SHAPE}-{index:02d}.txt").write_text(
            "\n".join(caption_clip(clip, rng)) + "\n", encoding="utf-8"
        )


def asked(world: World, count: int) -> list[Case]:
    """One second each, every direction and standing still in turn, in wordings that no training has."""
    motions = [name for name, _ in world.motions if name in DIRECTIONS or name == "still"]
    cases = []
    for index in range(count):
        rng = np.random.default_rng([UNSEEN, index])
        clip = lone_clip(world, motions[index % len(motions)], rng, hold=0)
        cases.append(Case("text", clip, ("first",), Request(prompts_of(clip, 0, rng), int(rng.integers(2**31)))))
    return cases


def made(magi: Magi, request: Request, sampling: Sampling) -> np.ndarray:
    generation = magi.generate(Storyboard((Shot(request.prompts[0], 1.0),)), seed=request.seed, sampling=sampling)
    return np.concatenate([chunk.frames for chunk in generation])


def shares(cases: Sequence[Case], videos: Sequence[np.ndarray]) -> dict[str, str]:
    """Per cent as asked, with 95 % intervals; the shape is told apart from all five."""
    results = [measure(case, frames, (*SHAPES, NEW_SHAPE)) for case, frames in zip(cases, videos, strict=True)]
    found = {}
    for name in ("shape", "colour", "direction"):
        share = Share.of(getattr(result.chunks[0], name) for result in results)
        low, high = share.interval
        found[name] = f"{100 * share.value:.0f} ({100 * low:.0f} to {100 * high:.0f})"
    return found


if __name__ == "__main__":
    main()
