"""From starting Python to the first second of video on hand: imports, weights, text, denoising, decoding.

    python benchmarks/cold_start.py [--rounds 5] [--threads 1] [--output benchmarks/results/cold_start_cpu.json]

magi-nano with its own settings; every round is a process of its own. After the first one, which is reported apart, the system has the
files at hand.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from record import write_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cold_start_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    first, *others = [cold_start(arguments.threads) for _ in range(arguments.rounds)]
    figures = {
        "seconds to the first decoded chunk, first round": round(first, 2),
        "seconds to the first decoded chunk, median of the others": round(statistics.median(others or [first]), 2),
        "rounds": arguments.rounds,
    }
    print(figures)
    write_record(arguments.output, figures)


def cold_start(threads: int) -> float:
    """Seconds until a new process has the first chunk's frames."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    began = time.monotonic()
    process = spawn.Process(target=first_chunk, args=(threads, there))
    process.start()
    there.close()
    frames = here.recv()
    seconds = time.monotonic() - began
    process.join()
    if frames != 24:
        raise RuntimeError(f"the first chunk has {frames} frames")
    return seconds


def first_chunk(threads: int, answer: Connection) -> None:
    """Send the number of frames of a video's first chunk as soon as they are there."""
    import magi_core

    torch.set_num_threads(threads)
    chunk = next(iter(magi_core.load("nano").generate("4s: a red circle moves right", seed=1)))
    answer.send(len(chunk.frames))


if __name__ == "__main__":
    main()
