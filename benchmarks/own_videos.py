"""Does a model fine-tuned on a folder of videos obey words that it did not know?

    python benchmarks/own_videos.py make FOLDER [--videos 20]
    magi finetune FOLDER -o TUNED --steps 89 --batch 12 --passes 2 --rate 1e-3
    python benchmarks/own_videos.py measure nano TUNED [--count 48] [--output benchmarks/results/own_videos_cpu.json]

The videos are of the synthetic world, two directions in each, told in words that magi-nano was never taught: "a red circle glides east",
"now it glides north". ``measure`` generates two seconds for other objects, seeds and pairs of directions, and counts the chunks that move
as they were told, by the simulator.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from record import write_record

from magi_core.evaluation.intervals import Share
from magi_core.evaluation.measures import measure_direction
from magi_core.evaluation.tracker import name_colour, track
from magi_core.pipeline import load
from magi_core.storyboard import Shot, Storyboard
from magi_core.video import VideoWriter
from magi_core.worlds.clips import CHUNK_FRAMES, NARROW, Clip, Phase, render, sample_start

WORDS = {"right": "east", "left": "west", "up": "north", "down": "south"}
HELD_OUT = 1000
"""Clips from this number on are never shown to the model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write videos and captions")
    make.add_argument("folder", type=Path)
    make.add_argument("--videos", type=int, default=20)
    measure = commands.add_parser("measure", help="count the chunks that obey")
    measure.add_argument("models", nargs="+")
    measure.add_argument("--count", type=int, default=48)
    measure.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "make":
        write_videos(arguments.folder, arguments.videos)
        return
    figures = {Path(model).name: score(model, arguments.count) for model in arguments.models}
    print("\n".join(f"{name}: {figure}" for name, figure in figures.items()))
    if arguments.output:
        write_record(arguments.output, figures)


def clip_of(number: int, chunks: int) -> Clip:
    """The clip with this number; motions go through all directions."""
    rng = np.random.default_rng([7, number])
    motions = [tuple(WORDS)[(number + turn * (1 + number // 4 % 3)) % 4] for turn in range(2)]
    motions += motions[1:] * (chunks - 2)
    shape, colour = str(rng.choice(NARROW.shapes)), str(rng.choice(NARROW.colours))
    start = sample_start(shape, 9.0, motions[0], rng)
    return Clip(shape, 9.0, 0.7, "black", start, tuple(Phase(colour, motion) for motion in motions))


def told(clip: Clip) -> list[str]:
    first, second = (WORDS[phase.motion] for phase in clip.phases[:2])
    return [f"a {clip.phases[0].colour} {clip.shape} glides {first}", f"now it glides {second}"]


def write_videos(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        clip = clip_of(number, 3)
        with VideoWriter(folder / f"glide-{number:02d}.mp4") as writer:
            writer.append(render(clip))
        (folder / f"glide-{number:02d}.txt").write_text("\n".join(told(clip)) + "\n", encoding="utf-8")


def score(model: str, count: int) -> dict[str, str]:
    """Shares of chunks that move as told, and of videos in the colour that was told."""
    magi = load(model, device="cpu")
    first: list[bool | None] = []
    second: list[bool | None] = []
    colour = []
    for number in range(HELD_OUT, HELD_OUT + count):
        clip = clip_of(number, 2)
        story = Storyboard(tuple(Shot(line, 1.0) for line in told(clip)))
        frames = np.concatenate([chunk.frames for chunk in magi.generate(story, seed=number)])
        for phase, outcomes, part in zip(
            clip.phases, (first, second), (frames[:CHUNK_FRAMES], frames[CHUNK_FRAMES:]), strict=True
        ):
            found = track(part, clip.background)
            outcomes.append(measure_direction(found, clip, phase.motion)[0])
            colour.append(name_colour(found) == phase.colour)
    return {"first second": said(first), "second second": said(second), "colour": said(colour)}


def said(outcomes: Sequence[bool | None]) -> str:
    share = Share.of(outcomes)
    low, high = share.interval
    return f"{share.value:.1%} ({low:.0%} to {high:.0%} of {share.total})"


if __name__ == "__main__":
    main()
