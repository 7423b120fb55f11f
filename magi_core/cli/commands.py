"""Parse, run one command, and turn what went wrong into one line.

Exit codes: 0 done, 1 a check or comparison failed, 2 something given cannot be used (one line says what), 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import torch

from magi_core.cli import (
    demo,
    distill,
    estimate,
    finetune,
    generate,
    inspect,
    physics_iq,
    produce,
    report,
    score,
    train,
    videos,
)
from magi_core.errors import MagiError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING, format="%(levelname)s: %(message)s"
    )
    try:
        return int(arguments.run(arguments))
    except MagiError as error:
        sys.stderr.write(f"magi {arguments.command}: {error}\n")
        return 2
    except (MemoryError, torch.OutOfMemoryError):
        sys.stderr.write(
            f"magi {arguments.command}: out of memory; choose a smaller --size or --window, --weights streamed, "
            "--precision fp8 or bfloat16, or --device cpu\n"
        )
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"magi {arguments.command}: interrupted\n")
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="magi", description="MAGI-1: video that streams out chunk by chunk.")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell what is being done")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (
        *(generate, produce, demo, inspect, estimate),
        *(train, distill, finetune),
        *(score, physics_iq, videos, report),
    ):
        module.add_commands(commands)
    return parser
