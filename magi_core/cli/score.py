"""`magi score`, `drift`, `physics-worlds`: a model against the exact simulator of the synthetic worlds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from magi_core.cli.model import (
    add_guidance,
    add_model,
    add_sampling,
    made_with,
    open_asked,
    sampling_asked,
    sharing,
)
from magi_core.cli.report import add_folder, write_results

if TYPE_CHECKING:
    from magi_core.evaluation.cases import Request
    from magi_core.evaluation.score import Generator
    from magi_core.images import Frames

SHOWN = 3
"""Predictions on a contact sheet."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    score = commands.add_parser("score", help="generate from held-back prompts and measure against the exact simulator")
    score.add_argument("--count", type=int, default=200, help="generations per task (default: 200)")
    _add_model(score)
    score.set_defaults(run=run_score)

    drift = commands.add_parser(
        "drift", help="make long videos and see second by second whether the object stays itself"
    )
    drift.add_argument("--count", type=int, default=40, help="videos (default: 40)")
    drift.add_argument("--seconds", type=int, default=30, help="length of each (default: 30)")
    drift.add_argument(
        "--described",
        choices=("first", "every"),
        default="first",
        help="in which seconds the prompt says what is seen; the others say only where it moves (default: first)",
    )
    _add_model(drift)
    drift.set_defaults(run=run_drift)

    worlds = commands.add_parser("physics-worlds", help="Physics-IQ's protocol on the synthetic worlds, with baselines")
    worlds.add_argument("--count", type=int, default=60, help="events (default: 60)")
    worlds.add_argument(
        "--kv-ranges", type=int, nargs="+", default=[], metavar="N", help="also with every chunk seeing N chunks"
    )
    worlds.add_argument(
        "--bidirectional",
        type=Path,
        metavar="FILE",
        help="also the model's variant without KV cache, as magi train --bidirectional makes it",
    )
    _add_model(worlds)
    worlds.set_defaults(run=run_physics_worlds)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Which model is measured, on which world, and where the figures go."""
    parser.add_argument("--world", choices=("narrow", "full"), default="narrow", help="which world (default: narrow)")
    add_sampling(parser)
    add_guidance(parser)
    add_model(parser)
    add_folder(parser)


def run_score(arguments: argparse.Namespace) -> int:
    from magi_core.evaluation.generator import generator_of
    from magi_core.evaluation.report import markdown, write_report
    from magi_core.evaluation.score import ScoreSettings, score

    magi = open_asked(arguments)
    sampling = sampling_asked(arguments, magi)
    settings = ScoreSettings(world=arguments.world, count=arguments.count)
    with sharing(arguments, magi) as within, progress_bar("video") as show:
        scores = score(generator_of(magi, sampling, within), settings, show)
    files = write_report(scores, arguments.output, made_with(arguments, magi, sampling))
    sys.stdout.write(markdown(scores) + "\n" + "\n".join(str(file) for file in files) + "\n")
    return 0


def run_drift(arguments: argparse.Namespace) -> int:
    from magi_core.evaluation.drift import drift_json, drift_markdown, score_drift
    from magi_core.evaluation.generator import generator_of

    magi = open_asked(arguments)
    sampling = sampling_asked(arguments, magi)
    lines: list[tuple[str, Frames]] = []

    def remembered(generate: Generator, requests: Sequence[Request]) -> Sequence[Frames]:
        made = generate(requests)
        if len(lines) < SHOWN:
            lines.append((f"{requests[0].prompts[0]}, and so on", made[0]))
        return made

    with sharing(arguments, magi) as within, progress_bar("video") as show:
        generator = partial(remembered, generator_of(magi, sampling, within))
        rows = score_drift(generator, arguments.world, arguments.count, arguments.seconds, arguments.described, show)
    asked = {"world": arguments.world, "count": arguments.count, "described": arguments.described}
    settings = made_with(arguments, magi, sampling) | asked
    table = drift_markdown(rows, arguments.described)
    write_results(arguments.output, "drift", table, drift_json(rows, settings), lines)
    return 0


def run_physics_worlds(arguments: argparse.Namespace) -> int:
    import numpy as np

    from magi_core.evaluation.baselines import BASELINES
    from magi_core.evaluation.generator import generator_of
    from magi_core.evaluation.physics_worlds import (
        build_events,
        from_last_frame,
        kv_range,
        score_baselines,
        score_events,
    )
    from magi_core.evaluation.tables import kv_curve, physics_json, physics_markdown
    from magi_core.training.bidirectional_sampler import bidirectional_of

    magi = open_asked(arguments)
    sampling = sampling_asked(arguments, magi)
    rows, lines = {}, []
    with sharing(arguments, magi) as within:
        made_by = partial(generator_of, magi, within=within)
        variants = {"continuation": made_by(sampling), "image to video": from_last_frame(made_by(sampling))}
        variants |= {f"KV range {chunks}": made_by(kv_range(sampling, chunks)) for chunks in arguments.kv_ranges}
        if arguments.bidirectional:
            variants["bidirectional"] = bidirectional_of(magi, arguments.bidirectional, sampling)
        for event in build_events(arguments.world, min(SHOWN, arguments.count)):
            lines.append((f"given, then what happened: {event.request.prompts[0]}", event.takes[0]))
            made = variants["continuation"]([event.request])[0]
            lines.append(("given, then predicted", np.concatenate([event.takes[0][: -len(made)], made])))
        for name, generator in variants.items():
            with progress_bar("event", name) as show:
                found = score_events(generator, arguments.world, arguments.count, show)
            rows[name] = found.pop("all")
            if name in ("continuation", "bidirectional"):
                rows |= {f"{name}, {motion}": score for motion, score in found.items()}
    for name, found in score_baselines(arguments.world, arguments.count).items():
        rows[f"baseline: {name}"] = found.pop("all")
        if name in BASELINES:
            rows |= {f"baseline: {name}, {motion}": score for motion, score in found.items()}
    curve = (
        kv_curve({chunks: rows[f"KV range {chunks}"] for chunks in sorted(arguments.kv_ranges)})
        if arguments.kv_ranges
        else None
    )
    asked = {"world": arguments.world, "count": arguments.count}
    if arguments.bidirectional:
        asked["bidirectional"] = str(arguments.bidirectional)
    settings = made_with(arguments, magi, sampling) | asked
    write_results(
        arguments.output, "physics-worlds", physics_markdown(rows), physics_json(rows, settings, curve=curve), lines
    )
    return 0


@contextmanager
def progress_bar(unit: str, name: str = "") -> Iterator[Callable[[int, int], None]]:
    """What is told how many are done, of how many, and shows it on the terminal."""
    from tqdm import tqdm

    with tqdm(unit=unit, desc=name or None, file=sys.stderr, delay=0.5) as bar:  # an error at once stands alone

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
