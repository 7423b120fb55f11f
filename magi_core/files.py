"""Writing files so that a crash or a full disk never leaves half of one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from magi_core.errors import MagiError


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Give a temporary path beside ``target``; when the block ends well, rename it to ``target``.

    The parent folder is made. On any exception the temporary file is removed and ``target`` keeps its old content.
    Raises MagiError when the folder cannot be written or the disk is full.
    """
    target = Path(target)
    temporary = target.with_name(f".{target.stem}-{uuid.uuid4().hex}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise _cannot_write(target, error) from error
    try:
        yield temporary
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(target: Path, error: Exception) -> MagiError:
    reason = getattr(error, "strerror", None) or error
    return MagiError(f"cannot write {str(target)!r}: {reason}. Free space, or choose a folder that can be written")
