"""Many runs in one folder: list them, and keep their number of bytes in bounds."""

from __future__ import annotations

import logging
import shutil
from itertools import chain, count
from pathlib import Path

from magi_core.errors import MagiError, whole_number
from magi_core.keeping import ABOUT, Run
from magi_core.run_lock import taken

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 60


def runs(folder: Path) -> list[Run]:
    """The runs right below a folder, the one that changed last first; damaged ones are logged and left out."""
    found, damaged = look_through(folder)
    for error in damaged.values():
        log.warning("%s", error)
    return found


def look_through(folder: Path) -> tuple[list[Run], dict[Path, MagiError]]:
    """The runs right below a folder, the one that changed last first, and the folders of those that cannot be read, with the reason."""
    found, damaged = [], {}
    for about in sorted(Path(folder).glob(f"*/{ABOUT}")):
        try:
            found.append(Run.open(about.parent))
        except MagiError as error:
            damaged[about.parent] = error
        except OSError as error:
            damaged[about.parent] = MagiError(f"the run {about.parent} cannot be read: {error.strerror or error}")
    return sorted(found, key=lambda run: run.changed, reverse=True), damaged


def prune(folder: Path, max_bytes: int) -> list[Path]:
    """Remove finished runs, oldest first, until all runs together have at most so many bytes; gives what was removed.

    A removed run's video stays, beside where it was and under its name (``NAME.mp4``, or a free ``NAME (2).mp4``). An unfinished run is never removed, nor one
    that is being made (it may wait for a last review) or cannot be read. Raises MagiError for a number that is none, OSError where a video cannot be moved.
    """
    whole_number("max_bytes", max_bytes, 0, MOST_BYTES)
    found = runs(folder)
    total = sum(run.nbytes for run in found)
    removed = []
    for run in reversed(found):
        if total > max_bytes and run.finished and not taken(run.folder):
            total -= run.nbytes
            if run.video.exists():
                run.video.rename(_free(run.folder))
            shutil.rmtree(run.folder, ignore_errors=True)
            removed.append(run.folder)
    return removed


def _free(folder: Path) -> Path:
    """Where a run's video can go that outlives it."""
    names = chain([f"{folder.name}.mp4"], (f"{folder.name} ({number}).mp4" for number in count(2)))
    return next(path for path in map(folder.with_name, names) if not path.exists())
