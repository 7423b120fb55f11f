"""`magi train`, `magi score`: make magi-nano, and measure a model on the synthetic worlds."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from magi_core.cli.samples import add_samples, sampled, sheets

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
        "--world", choices=("narrow", "full"), help="what the clips show (default: as magi-nano was trained)"
    )
    add_length(train)
    add_samples(train)
    train.set_defaults(run=run_train)

    score = commands.add_parser("score", help="generate from held-back prompts and measure against the exact simulator")
    score.add_argument(
        "--model",
        default="nano",
        help="'nano' (default), 'nano-distilled', a model folder, configuration or safetensors file",
    )
    score.add_argument(
        "-o", "--output", type=Path, default=Path("out/score"), help="folder for table, JSON and picture"
    )
    score.add_argument("--count", type=int, default=200, help="generations per task (default: 200)")
    score.add_argument("--world", choices=("narrow", "full"), default="narrow", help="which world (default: narrow)")
    score.add_argument("--steps", type=int, help="denoise steps (default: the model's)")
    score.add_argument("--window", type=int, help="chunks denoised at once (default: the model's)")
    score.add_argument("--reuse", type=float, metavar="THRESHOLD", help="score videos made with generate's --reuse")
    score.set_defaults(run=run_score)


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


def run_train(arguments: argparse.Namespace) -> int:
    from magi_core.training.train import WORK, Training, train

    logging.getLogger("magi_core").setLevel(logging.INFO)
    settings = Training()
    if arguments.world:
        settings = replace(settings, world=arguments.world)
    settings = replace(settings, dit=sampled(lasting(settings.dit, arguments), arguments))
    train(arguments.output, settings, sheets(arguments.output, arguments.output / WORK, arguments))
    sys.stdout.write(f"{arguments.output} is a model folder: magi generate --model {arguments.output} ...\n")
    return 0


def run_score(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from magi_core.cli.model import open_model
    from magi_core.evaluation.generator import generator_of
    from magi_core.evaluation.report import markdown, write_report
    from magi_core.evaluation.score import ScoreSettings, score

    magi = open_model(arguments.model)
    changes = {"num_steps": arguments.steps, "window_size": arguments.window}
    sampling = replace(magi.config.sampling, **{name: value for name, value in changes.items() if value is not None})
    settings = ScoreSettings(world=arguments.world, count=arguments.count)
    with tqdm(unit="video", file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        scores = score(generator_of(magi, sampling, arguments.reuse), settings, show)
    files = write_report(scores, arguments.output)
    sys.stdout.write(markdown(scores) + "\n" + "\n".join(str(file) for file in files) + "\n")
    return 0
