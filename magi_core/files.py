"""Files: written so that a crash or a full disk never leaves half of one; JSON read so that no content can do harm."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from magi_core.errors import MagiError

MAX_JSON_BYTES = 16 << 20
"""A 24B checkpoint's index or header has about 0.4 MB; a larger JSON than this is damage or an attack."""
BLOCK_BYTES = 1 << 20


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
        mode = temporary.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise _cannot_write(target, error) from error
    try:
        yield temporary
        temporary.chmod(mode)  # a library that puts its own file there may have made it private
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # before the name: a power cut leaves the old file or the new one
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(target: Path, error: Exception) -> MagiError:
    reason = getattr(error, "strerror", None) or error
    return MagiError(f"cannot write {str(target)!r}: {reason}. Free space, or choose a folder that can be written")


def digest_of(*paths: Path) -> str:
    """SHA-256 of what files hold, one behind the other, in hexadecimal. Raises MagiError where one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise MagiError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises MagiError when the file is missing, larger than 16 MB, or holds anything else."""
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_JSON_BYTES + 1)
    except (OSError, ValueError) as error:
        raise MagiError(f"cannot read {str(path)[:500]!r}: {getattr(error, 'strerror', None) or error}") from error
    return parse_json_object(raw, path)


def parse_json_object(raw: bytes, path: Path) -> dict[str, Any]:
    """Parse untrusted JSON that must be an object; MagiError on anything else, however large or deeply nested it is.

    ``path`` only names the file in errors.
    """
    if len(raw) > MAX_JSON_BYTES:
        raise MagiError(f"{path} has more than {MAX_JSON_BYTES >> 20} MB of JSON; this is no file of a model")
    try:
        document = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        place = f" at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise MagiError(
            f"{path} is damaged: its JSON cannot be read ({type(error).__name__}{place}). Correct it or copy the file again"
        ) from error
    if not isinstance(document, dict):
        raise MagiError(f"{path} is damaged: its JSON is not an object. Correct it or copy the file again")
    return document
