"""Tensors in a file that says when it is damaged: safetensors, with a JSON header of ours and a SHA-256 of every byte.

Notable: the hash stands in the header, where 64 zeros stood when it was computed. So it covers the header too, and any safetensors
reader opens the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.files import atomic_write

DAMAGE = (KeyError, ValueError, TypeError, AttributeError, IndexError, ArithmeticError, RuntimeError, MemoryError)
"""What a file that is not as we write it can raise while it is read."""
MAX_HEADER_BYTES = 100 << 20
_BLOCK = 1 << 20
_HASH = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')


def write_tensors(path: Path, tensors: Mapping[str, Tensor], kind: str, header: Mapping[str, Any]) -> None:
    """Write the file, all or nothing. ``kind`` names what it is; ``header`` is JSON with a "version". Raises MagiError where it cannot be written."""
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    with atomic_write(Path(path)) as temporary:
        save_file(plain, temporary, metadata={kind: json.dumps({"sha256": "0" * 64, **header})})
        with temporary.open("r+b") as file:
            digest, at = _digest(file)
            file.seek(at)
            file.write(digest)


def read_tensors(
    path: Path, kind: str, what: str, device: torch.device | str = "cpu"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file of that kind.

    Raises MagiError, with ``what`` (such as "session file") and the path in it, when the file is missing, of another kind, or any byte
    of it is not as it was written. (Headers with version 1 may be without a hash.)
    """
    with _opened(path, kind, what) as (header, tensors):
        if "sha256" in header or header["version"] != 1:
            with Path(path).open("rb") as file:
                if _digest(file)[0].decode() != header["sha256"]:
                    raise ValueError("another hash")
        return header, {name: tensors.get_tensor(name).to(device) for name in tensors.keys()}  # noqa: SIM118 - no mapping


def read_header(path: Path, kind: str, what: str) -> dict[str, Any]:
    """The header alone, of a file of any size at once and so without its hash; raises MagiError as ``read_tensors``."""
    with _opened(path, kind, what) as (header, _):
        return header


@contextmanager
def _opened(path: Path, kind: str, what: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """The header and the open file; what goes wrong while it is read, as a MagiError."""
    try:
        with safe_open(path, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            if kind not in metadata:
                raise MagiError(f"{path} is not a {what}")
            yield json.loads(metadata[kind]), tensors
    except MagiError:
        raise
    except FileNotFoundError as error:
        raise MagiError(f"there is no {what} {path}") from error
    except (*DAMAGE, OSError, SafetensorError) as error:
        raise MagiError(f"the {what} {path} is damaged") from error


def _digest(file: BinaryIO) -> tuple[bytes, int]:
    """The hash of a file whose own hash counts as zeros, and where that stands. Raises ValueError when it has none."""
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError("no header")
    header = file.read(length)
    found = _HASH.search(header)
    if not found:
        raise ValueError("no hash")
    first, end = found.span(1)
    digest = hashlib.sha256(length.to_bytes(8, "little"))
    digest.update(header[:first] + b"0" * (end - first) + header[end:])
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest().encode(), 8 + first
