"""Writing files so that a crash or a full disk never leaves half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magi_core.errors import MagiError


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Give a temporary path beside ``target``; when the block ends well, rename it to ``target``.

    The parent folder is made. On any exception the temporary file is removed and ``target`` keeps its old content.
    Raises MagiError when the folder cannot be written.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise MagiError(
            f"cannot write {target}: {error.strerror}. Choose a folder that exists and is writable"
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, target)
        os.chmod(target, 0o666 & ~_umask())
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
