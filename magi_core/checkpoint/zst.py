"""Shards compressed with zstd: look into one without unpacking it, and unpack it within a hard limit.

The limit is the size that the safetensors header inside promises; one byte more or less is an error. A header that promises
far more than weights can compress to is refused before anything is written.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from magi_core.checkpoint.header import Header, read_header
from magi_core.errors import MagiError, missing_extra
from magi_core.files import atomic_write

logger = logging.getLogger(__name__)

MAX_RATIO = 100
"""Trained weights compress about 1.3 times; a file that claims more than 100 times (beyond the allowance) is a bomb."""
RATIO_ALLOWANCE = 64 << 20
BLOCK_BYTES = 4 << 20


def read_zst_header(path: Path) -> Header:
    """The safetensors header inside ``path``, unpacking only its first bytes. Raises MagiError as ``read_header`` does."""
    with _open(path) as stream:
        header = read_header(stream, path)
    packed = path.stat().st_size
    if header.file_size > MAX_RATIO * packed + RATIO_ALLOWANCE:
        raise MagiError(
            f"{path} claims to unpack from {packed} to {header.file_size} bytes, far more than weights compress; "
            "it is damaged or an attack and was not unpacked"
        )
    return header


def unpack(path: Path, header: Header, cache: Path | None) -> Path:
    """Unpack ``path`` once, streaming, and return the plain safetensors file.

    It goes beside ``path`` (its name without ``.zst``), or into the folder ``cache`` under a name that is unique to this
    file's place, size and time. An unpacked file of the right size is used again. Raises MagiError when the content is not
    exactly as long as its header says, and when the disk is full or not writable.
    """
    target = path.with_suffix("") if cache is None else Path(cache) / _cache_name(path)
    if target.is_file() and target.stat().st_size == header.file_size:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < header.file_size:
        raise MagiError(
            f"unpacking {path} needs {header.file_size / 1e9:.1f} GB in {target.parent}, where {free / 1e9:.1f} GB are free"
        )
    logger.info("unpacking %s to %s (%.1f GB)", path, target, header.file_size / 1e9)
    with atomic_write(target) as temporary, _open(path) as stream, temporary.open("wb") as output:
        written = 0
        while block := stream.read(BLOCK_BYTES):
            written += len(block)
            if written > header.file_size:
                raise MagiError(
                    f"{path} unpacks to more than the {header.file_size} bytes its header promises; refused"
                )
            output.write(block)
        if written < header.file_size:
            raise MagiError(
                f"{path} is cut off: it unpacks to {written} of {header.file_size} bytes. Download it again"
            )
    return target


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        import zstandard
    except ImportError as error:
        raise missing_extra("zstandard", "checkpoint", f"reading {path.name}") from error
    try:
        with (
            path.open("rb") as packed,
            zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as stream,
        ):
            yield stream
    except (zstandard.ZstdError, MemoryError) as error:
        raise MagiError(f"{path} is not a readable zstd file: {error}. Download it again") from error
    except OSError as error:
        raise MagiError(f"cannot unpack {path}: {error.strerror or error}") from error


def _cache_name(path: Path) -> str:
    status = path.stat()
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    return f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{path.with_suffix('').name}"
