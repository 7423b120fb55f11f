"""`magi distill`: a student that needs one pass a step, from a base model."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

from magi_core.cli.samples import add_samples, sampled, sheets
from magi_core.cli.train import add_length, lasting


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    distill = commands.add_parser(
        "distill",
        help="teach a model of one pass a step what a base model does in many; the same command goes on with an unfinished run",
    )
    distill.add_argument(
        "--teacher", default="nano", help="'nano' (default), a base model's folder, configuration or safetensors file"
    )
    distill.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("runs/nano-distilled"),
        help="model folder to make (default: runs/nano-distilled)",
    )
    distill.add_argument(
        "--clips",
        type=Path,
        metavar="FOLDER",
        help="clips that the teacher was trained with, runs/nano/training/clips (default: make them)",
    )
    distill.add_argument("--world", choices=("narrow", "full"), help="what clips show that are made (default: narrow)")
    add_length(distill)
    add_samples(distill)
    distill.set_defaults(run=run_distill)


def run_distill(arguments: argparse.Namespace) -> int:
    from magi_core.training.distil import Distillation, distil
    from magi_core.training.train import WORK

    logging.getLogger("magi_core").setLevel(logging.INFO)
    settings = Distillation()
    if arguments.world:
        settings = replace(settings, world=arguments.world)
    settings = replace(settings, dit=sampled(lasting(settings.dit, arguments), arguments))
    watch = sheets(arguments.output, arguments.output / WORK, arguments)
    distil(arguments.teacher, arguments.output, settings, arguments.clips, watch)
    sys.stdout.write(f"{arguments.output} is a model folder: magi generate --model {arguments.output} ...\n")
    return 0
