"""The header of a safetensors file: what tensors it holds, read and checked without touching the data.

A safetensors file is an 8-byte little-endian length, that many bytes of JSON (name -> dtype, shape, byte range; and
``__metadata__``), then the data without gaps. We read it ourselves because the safetensors package cannot look into a ``.zst``
stream, cannot write a file larger than memory, and maps a whole file at once, which a 48 GB one may not allow. Everything a
damaged or hostile header can claim is checked here, before anything is allocated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch

from magi_core.errors import MagiError
from magi_core.files import MAX_JSON_BYTES, parse_json_object

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_OTHER_CONTENT = (
    (b"PK\x03\x04", "a zip or PyTorch pickle file"),
    (b"\x80", "a Python pickle"),
    (b"version ", "a Git LFS pointer (the real file was not downloaded)"),
    (b"<", "a web page (the download failed)"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed (its name should end in .zst)"),
    (b"GGUF", "a GGUF file"),
)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """A checked header: tensors by name, where their data start in the file, its metadata, and the size it must have."""

    tensors: Mapping[str, TensorInfo]
    positions: Mapping[str, int]
    metadata: Mapping[str, str]
    file_size: int


def read_header(stream: BinaryIO, path: Path) -> Header:
    """Read and check the header at the start of ``stream``; ``path`` is only used to name the file in errors.

    Raises MagiError when this is no safetensors file, when it is cut off, or when names, dtypes, shapes and byte ranges do
    not fit together (overlaps, gaps, sizes that differ from shape x dtype).
    """
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= MAX_JSON_BYTES:
        kind = next((kind for start, kind in _OTHER_CONTENT if prefix.startswith(start)), "damaged or cut off")
        raise MagiError(f"{path} is not a safetensors file: it is {kind}. Download it again or choose another file")
    raw = stream.read(length)
    if len(raw) < length:
        raise _damaged(path, f"its header has {len(raw)} of {length} bytes")
    entries = parse_json_object(raw, path)
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _damaged(path, "its metadata is not a table of texts")
    tensors = {}
    ranges = {}
    require_plain_names(entries, path)
    for name, entry in entries.items():
        tensors[name], ranges[name] = _read_entry(name, entry, path)
    data_size = 0
    for start, end in sorted(ranges.values()):
        if start != data_size:
            raise _damaged(path, f"the tensors' byte ranges overlap or leave a gap at byte {min(start, data_size)}")
        data_size = end
    positions = {name: 8 + length + start for name, (start, _) in ranges.items()}
    return Header(tensors, positions, metadata, 8 + length + data_size)


def require_plain_names(names: Iterable[str], path: Path) -> None:
    """Refuse tensor names that no model has (very long, or with control characters), so that errors may show the others."""
    if not all(len(name) <= 200 and name.isprintable() for name in names):
        raise _damaged(path, "a tensor name in it is not plain text")


def header_bytes(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a safetensors file whose data follow in the order of ``tensors`` (length, JSON, padding to 8)."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, info in tensors.items():
        entries[name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, position + info.nbytes],
        }
        position += info.nbytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _read_entry(name: str, entry: Any, path: Path) -> tuple[TensorInfo, tuple[int, int]]:
    if not isinstance(entry, dict):
        raise _damaged(path, f"the entry of tensor {name} is not an object")
    dtype = DTYPES.get(str(entry.get("dtype")))
    if dtype is None:
        raise _damaged(path, f"tensor {name} has the unknown dtype {ascii(entry.get('dtype'))[:20]}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name} has no valid shape and byte range")
    info = TensorInfo(tuple(shape), dtype)
    if offsets[1] - offsets[0] != info.nbytes:
        raise _damaged(path, f"tensor {name} needs {info.nbytes} bytes but its range differs")
    return info, (offsets[0], offsets[1])


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def _damaged(path: Path, reason: str) -> MagiError:
    return MagiError(f"{path} is damaged: {reason}. Download or copy the file again")
