"""`magi physics-iq`: the public benchmark of filmed experiments, predicted and scored."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from magi_core.cli.model import (
    Within,
    add_guidance,
    add_model,
    add_sampling,
    made_with,
    open_asked,
    sampling_asked,
    sharing,
)
from magi_core.cli.report import add_folder, counted, write_results
from magi_core.errors import MagiError

if TYPE_CHECKING:
    from magi_core.evaluation.physics_iq import View
    from magi_core.evaluation.physics_iq_folder import Given
    from magi_core.images import Frames
    from magi_core.pipeline import Magi

SHOWN = 3
"""Predictions on a contact sheet."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    physics = commands.add_parser("physics-iq", help="predict the videos of the Physics-IQ benchmark and score them")
    physics.add_argument("folder", type=Path, help="the benchmark's folder (split-videos, switch-frames, ...)")
    physics.add_argument(
        "--score-only",
        type=Path,
        metavar="VIDEOS",
        help="score the videos in this folder; makes none and loads no model",
    )
    physics.add_argument("--fps", type=int, default=24, help="frames per second, with --score-only (default: 24)")
    physics.add_argument(
        "--given",
        choices=("video", "image"),
        default="video",
        help="what a prediction begins with: 3 seconds (default) or a picture",
    )
    physics.add_argument(
        "--descriptions", type=Path, help="the benchmark's descriptions.csv (default: in or beside the folder)"
    )
    physics.add_argument("--size", metavar="WxH", help="size in pixels, multiples of 16 (default: the model's)")
    add_sampling(physics)
    add_guidance(physics)
    physics.add_argument("--seed", type=int, default=0, help="of the first video; the others count on (default: 0)")
    physics.add_argument("--count", type=int, help="only the first so many of the 198")
    add_model(physics)
    add_folder(physics)
    physics.set_defaults(run=run_physics_iq)


def run_physics_iq(arguments: argparse.Namespace) -> int:
    from magi_core.cli.generate import parse_size
    from magi_core.evaluation.physics_iq_folder import Benchmark, predict_all, prediction_of, score_all
    from magi_core.evaluation.tables import benchmark_rows, physics_json, physics_markdown

    if arguments.count is not None and arguments.count < 1:
        raise MagiError(f"--count is {arguments.count}; it must be at least 1")
    folder: Path = arguments.score_only or arguments.output / "physics-iq-videos"
    problems: list[str] = []
    if arguments.score_only:
        benchmark = Benchmark(arguments.folder, arguments.fps, arguments.descriptions)
        tasks = benchmark.tasks()[: arguments.count]
        settings: dict[str, object] = {"videos": str(folder)}
    else:
        magi = open_asked(arguments)
        benchmark = Benchmark(arguments.folder, magi.config.fps, arguments.descriptions)
        tasks = benchmark.tasks()[: arguments.count]
        height, width = parse_size(arguments.size)
        size = height or magi.config.height, width or magi.config.width
        with sharing(arguments, magi) as within:
            predict, settings = _predictor(magi, arguments, within)
            image, stamp = arguments.given == "image", json.dumps(settings)
            making = predict_all(
                benchmark, tasks, folder, predict, seed=arguments.seed, image=image, size=size, made_with=stamp
            )
            for task, problem in counted(making, len(tasks), "video"):
                if problem:
                    problems.append(f"{task.file} was not made: {problem}")
    views: list[View] = []
    lines: list[tuple[str, Frames]] = []
    for task, view, problem in counted(score_all(benchmark, tasks, folder), len(tasks), "score"):
        if view is not None:
            views.append(view)
            lines += benchmark.shown(task, prediction_of(task, folder)) if len(lines) < 2 * SHOWN else []
        elif not any(task.file in known for known in problems):
            problems.append(f"{task.file} was not scored: {problem}")
    for line in problems:
        sys.stderr.write(line + "\n")
    rows = benchmark_rows(views)
    part = (
        [f"Only {len(views)} of the benchmark's 198 videos: not to be compared with published scores."]
        if len(views) != 198
        else []
    )
    write_results(
        arguments.output, "physics-iq", physics_markdown(rows, part), physics_json(rows, settings, views), lines
    )
    return 1 if problems else 0


def _predictor(
    magi: Magi, arguments: argparse.Namespace, within: Within
) -> tuple[Callable[[Given], Iterator[Frames]], dict[str, object]]:
    """What makes a prediction, and the settings that it is made with."""
    from magi_core.cli.generate import parse_size
    from magi_core.evaluation.physics_iq_folder import PREDICTED_SECONDS
    from magi_core.storyboard import Shot, Storyboard
    from magi_core.wishes import Wishes

    height, width = parse_size(arguments.size)
    sampling = sampling_asked(arguments, magi)
    wishes = Wishes(height=height, width=width, sampling=sampling, fit="stretch")  # the benchmark stretches it back

    def predict(given: Given) -> Iterator[Frames]:
        story = Storyboard((Shot(given.prompt, float(PREDICTED_SECONDS)),))
        generation = magi.generate(story, image=given.image, video=given.video, wishes=replace(wishes, seed=given.seed))
        with within(generation.making) as decode:
            for finished in generation.making.chunks():
                yield finished.decoded(decode)

    asked = {"given": arguments.given, "seed": arguments.seed, "size": arguments.size}
    return predict, made_with(arguments, magi, sampling) | asked
