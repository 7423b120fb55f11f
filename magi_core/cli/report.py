"""`magi report`: everything that was measured on one page; and how the commands that measure write what it reads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from magi_core.files import atomic_write

if TYPE_CHECKING:
    from magi_core.images import Frames

T = TypeVar("T")
OUT = Path("out/evaluation")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="put everything that was measured on one page")
    report.add_argument(
        "folders", type=Path, nargs="*", default=[OUT], help=f"what the other commands wrote (default: {OUT})"
    )
    report.add_argument(
        "-o", "--output", type=Path, default=Path("out/report.html"), help="the page (default: out/report.html)"
    )
    report.add_argument("--title", default="What the model can do", help="the page's title")
    report.set_defaults(run=run_report)


def run_report(arguments: argparse.Namespace) -> int:
    from magi_core.evaluation.report_page import find_sections, write_report_page

    sections = find_sections(arguments.folders)
    tables = write_report_page(sections, arguments.output, arguments.title)
    sys.stdout.write(f"{arguments.output} and {tables}: {', '.join(section.name for section in sections)}\n")
    return 0


# ---- what the other commands share -----------------------------------------------------------------------------------


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Where results go."""
    parser.add_argument("-o", "--output", type=Path, default=OUT, help=f"folder for table and JSON (default: {OUT})")


def write_results(
    folder: Path, name: str, markdown: str, figures: str, lines: Sequence[tuple[str, Frames]] = ()
) -> None:
    """Table, figures and, of ``lines``, a contact sheet as files; and the table on the terminal."""
    from magi_core.images import contact_sheet, write_png

    if lines:
        write_png(folder / f"{name}.png", contact_sheet(lines, columns=10, cell=96))
    for suffix, text in ((".md", markdown), (".json", figures)):
        with atomic_write(folder / f"{name}{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{markdown}\n{folder / name}.md, .json{' and .png' if lines else ''}\n")


def counted(items: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """The items, counted on the terminal as they go by."""
    from tqdm import tqdm

    yield from tqdm(items, total=total, unit=unit, file=sys.stderr)
