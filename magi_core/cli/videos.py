"""`magi motion`, `vote`, `votes`: finished videos, of whatever model, measured and compared by people."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from magi_core.cli.report import add_folder, counted, write_results
from magi_core.errors import MagiError

SUFFIXES = (".mp4", ".webm")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    motion = commands.add_parser(
        "motion", help="flickering, smoothness and dynamic degree of videos, in the manner of VBench"
    )
    motion.add_argument("videos", type=Path, nargs="+", help="videos, or folders of them")
    motion.add_argument(
        "--vbench-results",
        type=Path,
        nargs="*",
        default=[],
        metavar="JSON",
        help="add what VBench's own package found (*_eval_results.json)",
    )
    add_folder(motion)
    motion.set_defaults(run=run_motion)

    vote = commands.add_parser("vote", help="write a page on which people compare the videos of two folders, blind")
    vote.add_argument("first", type=Path, help="videos of one model")
    vote.add_argument("second", type=Path, help="videos of the other, under the same names")
    vote.add_argument(
        "-o", "--output", type=Path, default=Path("out/vote.html"), help="the page (default: out/vote.html)"
    )
    vote.add_argument("--names", nargs=2, metavar="NAME", help="names of the models (default: of the folders)")
    vote.add_argument("--prompts", type=Path, help="a JSON object of prompts by video name, shown above the videos")
    vote.add_argument("--seed", type=int, default=0, help="decides the order and the sides (default: 0)")
    vote.set_defaults(run=run_vote)

    votes = commands.add_parser("votes", help="count the votes that the page saved: wins, ties, losses")
    votes.add_argument("files", type=Path, nargs="+", help="JSON files, one a person")
    add_folder(votes)
    votes.set_defaults(run=run_votes)


def run_motion(arguments: argparse.Namespace) -> int:
    import numpy as np

    from magi_core.evaluation.cv import frames_of, frames_per_second
    from magi_core.evaluation.motion import (
        measure_motion,
        motion_json,
        motion_markdown,
        motion_rows,
        read_package_results,
    )

    files = [
        file
        for path in arguments.videos
        for file in (sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES) if path.is_dir() else [path])
    ]
    measured = []
    for file in counted(files, len(files), "video"):
        try:
            measured.append(measure_motion(np.stack(list(frames_of(file))), frames_per_second(file)))
        except MagiError as error:
            sys.stderr.write(f"{file} is left out: {error}\n")
    rows = motion_rows(measured)
    for results in arguments.vbench_results:
        rows |= read_package_results(results)
    write_results(arguments.output, "motion", motion_markdown(rows, len(measured)), motion_json(rows, len(measured)))
    return 0 if len(measured) == len(files) else 1


def run_vote(arguments: argparse.Namespace) -> int:
    from magi_core.evaluation.votes import find_pairs, write_page
    from magi_core.files import read_json_object

    prompts = (
        {name: str(text) for name, text in read_json_object(arguments.prompts).items()} if arguments.prompts else {}
    )
    first, second = arguments.names or (arguments.first.resolve().name, arguments.second.resolve().name)
    pairs = find_pairs(arguments.first, arguments.second, prompts)
    beside = write_page(pairs, arguments.output, (first, second), seed=arguments.seed)
    also = f"; keep {beside} beside it" if beside else ""
    sys.stdout.write(
        f"{arguments.output}: {len(pairs)} pairs{also}. Open it in a browser; then magi votes votes-*.json\n"
    )
    return 0


def run_votes(arguments: argparse.Namespace) -> int:
    from magi_core.evaluation.votes import count_votes, votes_json, votes_markdown

    names, verdicts, voters = count_votes(arguments.files)
    write_results(
        arguments.output, "votes", votes_markdown(names, verdicts, voters), votes_json(names, verdicts, voters)
    )
    return 0
