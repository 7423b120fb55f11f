"""Sample sheets of a training: what the model makes of the same storyboards, from the same seeds, every so often, as PNG files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from magi_core.errors import MagiError
from magi_core.storyboard import Storyboard

if TYPE_CHECKING:
    from magi_core.pipeline import Magi
    from magi_core.training.dit import DiTSettings

WORLD = (
    "a red circle moves right\nthe circle turns blue\nit moves up",
    "a green square moves down\nit moves left\nit stops",
    "a yellow triangle stands still\nit moves right\nit turns magenta",
    "a cyan circle falls\nit keeps falling\nit keeps falling",
)
"""What sheets of the synthetic world show; every world has it."""
FOLDER = "samples"


def add_samples(parser: argparse.ArgumentParser) -> None:
    """The options of ``sampled`` and ``sheets``, for trainings on the synthetic world."""
    parser.add_argument(
        "--sample-steps",
        type=int,
        metavar="STEPS",
        help="draw a sample sheet every so many training steps, 0 for the end alone (default: 500)",
    )
    parser.add_argument(
        "--sample",
        action="append",
        metavar="STORYBOARD",
        help="what a sample shows; may be repeated (default: four of three seconds)",
    )


def sampled(settings: DiTSettings, arguments: argparse.Namespace) -> DiTSettings:
    """Settings that hand out the model as often as is asked; raises MagiError for a negative number."""
    if arguments.sample_steps is None:
        return settings
    if arguments.sample_steps < 0:
        raise MagiError(f"--sample-steps is {arguments.sample_steps}; it must be 0, for the end alone, or more")
    return replace(settings, keep_steps=arguments.sample_steps)


def sheets(output: Path, work: Path, arguments: argparse.Namespace) -> Callable[[int], None]:
    """What draws a sheet of the model folder ``output`` into the folder ``work``, given the step. Raises MagiError for a wrong storyboard."""
    from magi_core.pipeline import load

    stories = [Storyboard.parse(text) for text in arguments.sample or WORLD]

    def draw(step: int) -> None:
        magi = load(output)
        draw_samples(magi, stories, (magi.config.height, magi.config.width), sheet_file(work, step))

    return draw


def sheet_file(work: Path, step: int) -> Path:
    """Where the sheet of a step lies."""
    return work / FOLDER / f"step-{step:06d}.png"


def draw_samples(magi: Magi, stories: Sequence[Storyboard], size: tuple[int, int], target: Path) -> None:
    """A contact sheet of what a model makes of each storyboard, always from the same seeds, as a PNG file."""
    import numpy as np
    import torch

    from magi_core.images import contact_sheet, write_png

    rows = []
    for seed, story in enumerate(stories):
        made = magi.generate(story, seed=seed, height=size[0], width=size[1])
        label = " / ".join(dict.fromkeys(shot.prompt for shot in story.shots))
        rows.append((label, np.concatenate([chunk.frames for chunk in made])))
    write_png(target, contact_sheet(rows))
    if magi.device.type == "cuda":
        torch.cuda.empty_cache()  # training needs it again
