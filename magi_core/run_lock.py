"""One process at a time makes a run: a lock that the system itself lets go of, however the process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout  # comes with torch

from magi_core.errors import MagiError

LOCK = "lock"
"""The file in the run's folder; it may stay there."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While this is entered, no other process makes the run in ``folder``. Raises MagiError where another one does.

    A folder that cannot be written, or a disk without locks, is used all the same.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    with suppress(OSError, NotImplementedError):
        try:
            lock.acquire()
        except Timeout as error:
            raise MagiError(
                f"the run {folder} is being made by another process; wait for it, or stop it there"
            ) from error
    try:
        yield
    finally:
        lock.release()


def taken(folder: Path) -> bool:
    """Whether a process makes the run in ``folder`` now, this one too."""
    try:
        with alone(folder):
            return False
    except MagiError:
        return True
