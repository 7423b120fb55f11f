"""`magi train`: magi-nano from nothing."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from magi_core.cli.samples import add_samples, sampled, sheets
from magi_core.errors import MagiError

if TYPE_CHECKING:
    from magi_core.training.dit import DiTSettings


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser(
        "train", help="train magi-nano from nothing; the same command goes on with an unfinished run"
    )
    train.add_argument(
        "-o", "--output", type=Path, default=Path("runs/nano"), help="model folder to make (default: runs/nano)"
    )
    train.add_argument(
        "--world",
        choices=("narrow", "full"),
        default="narrow",
        help="what it is to know: narrow makes a magi-nano, full a magi-nano-full (default: narrow)",
    )
    train.add_argument(
        "--start",
        metavar="MODEL",
        help="go on from a model of magi-nano's sizes, a folder or 'nano', say in a larger world (default: from nothing)",
    )
    train.add_argument(
        "--rollouts",
        type=int,
        default=0,
        metavar="N",
        help="with --start, for a model with an anchor: it makes N videos of 20 s first, and is shown how their seconds should have gone on, "
        "and those of six clips for each that show another shape or size than they began with",
    )
    train.add_argument(
        "--blend",
        type=float,
        metavar="SHARE",
        help="with --start: so much of the model is what this run learnt, the rest what it began with, above 0 and at most 1 "
        "(default: 0.75 with --rollouts, else 1)",
    )
    train.add_argument(
        "--seed",
        type=int,
        help="of what the transformer is shown, rollouts too: give a run that goes on from another one a seed of its own (default: 0, with --start 1)",
    )
    train.add_argument(
        "--bidirectional",
        action="store_true",
        help="make the variant of --start that magi physics-worlds --bidirectional compares it with",
    )
    add_length(train)
    add_samples(train)
    train.set_defaults(run=run_train)


def add_length(parser: argparse.ArgumentParser) -> None:
    """The options of ``lasting``."""
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="training steps of the transformer; reproducible")
    length.add_argument("--minutes", type=float, help="train it for so long instead of for a number of steps")


def lasting(settings: DiTSettings, arguments: argparse.Namespace) -> DiTSettings:
    """Settings that train for as long as is asked."""
    if arguments.steps is None and arguments.minutes is None:
        return settings
    return replace(settings, steps=arguments.steps, minutes=arguments.minutes)


def seeded(settings: DiTSettings, arguments: argparse.Namespace) -> DiTSettings:
    """Settings with the seed that is asked for."""
    return settings if arguments.seed is None else replace(settings, seed=arguments.seed)


def run_train(arguments: argparse.Namespace) -> int:
    from magi_core.training.train import RECIPES, WORK, gone_on, train

    logging.getLogger("magi_core").setLevel(logging.INFO)
    if arguments.bidirectional:
        return run_bidirectional(arguments)
    settings = RECIPES[arguments.world]
    if arguments.start:
        settings = gone_on(settings, arguments.start, arguments.rollouts)
    elif arguments.rollouts:
        raise MagiError("--rollouts are videos of the model that is gone on from; give it, say --start nano-full")
    if arguments.blend is not None:
        if not arguments.start:
            raise MagiError("--blend is with the model that is gone on from; give it, say --start nano-full")
        settings = replace(settings, blend=arguments.blend)
    settings = replace(settings, dit=sampled(seeded(lasting(settings.dit, arguments), arguments), arguments))
    train(arguments.output, settings, sheets(arguments.output, arguments.output / WORK, arguments))
    sys.stdout.write(f"{arguments.output} is a model folder: magi generate --model {arguments.output} ...\n")
    return 0


def run_bidirectional(arguments: argparse.Namespace) -> int:
    from magi_core.training.bidirectional import WEIGHTS_FILE, Bidirectional, train_bidirectional

    if not arguments.start:
        raise MagiError("--bidirectional needs the model that it is a variant of: --start nano")
    if arguments.rollouts:
        raise MagiError(
            "--rollouts teach models that make one second after the other; leave them or --bidirectional out"
        )
    if arguments.blend is not None:
        raise MagiError(
            "--blend is between two models of one kind, and the variant is of another; leave it or --bidirectional out"
        )
    if arguments.sample or arguments.sample_steps is not None:
        raise MagiError("--sample and --sample-steps show model folders; --bidirectional makes none, so leave them out")
    settings = Bidirectional(world=arguments.world)
    train_bidirectional(
        arguments.start, arguments.output, replace(settings, dit=seeded(lasting(settings.dit, arguments), arguments))
    )
    sys.stdout.write(f"magi physics-worlds --bidirectional {arguments.output / WEIGHTS_FILE} compares the variant\n")
    return 0
