"""Tensors of a checkpoint: one safetensors file, or an index with shards, any of them possibly compressed (spec section 2).

Opening reads headers only. Reading gives one tensor at a time, mapped from the file: nothing is held twice, and on the CPU a
tensor that keeps its dtype stays on disk until it is used. Pickle files are never opened. File names in an index are
untrusted: they must be plain names of files that lie in the index's own folder.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magi_core.checkpoint.header import (
    Header,
    TensorInfo,
    read_header,
    require_plain_names,
)
from magi_core.checkpoint.zst import read_zst_header, unpack
from magi_core.errors import MagiError
from magi_core.files import read_json_object

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint, ``.safetensors`` or ``.safetensors.zst``, and its checked header."""

    path: Path
    header: Header


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds: tensors by name over all its shards, in the order of the files."""

    path: Path
    shards: tuple[Shard, ...]
    tensors: Mapping[str, TensorInfo]

    @property
    def metadata(self) -> Mapping[str, str]:
        """Metadata of a one-file checkpoint; of several shards, the first one's."""
        return self.shards[0].header.metadata

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(info.numel for info in self.tensors.values())


def open_weights(path: Path) -> Weights:
    """Open a weights folder (``model.safetensors.index.json`` or ``model.safetensors``), an index, or a safetensors file.

    Each file may exist only as ``<name>.zst``. Raises MagiError when there is nothing to read, when files are missing or
    damaged, when the index points outside its folder, and for pickle files.
    """
    path = Path(path)
    if path.is_dir():
        path = _weights_in(path)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise MagiError(
            f"{path} is a pickle file, which can run code when opened; it was not read. "
            "Use the safetensors files of the release, or convert it to safetensors first"
        )
    if path.suffix == ".json":
        return _open_index(path)
    shard = _open_shard(path)
    if not shard.header.tensors:
        raise MagiError(f"{path} holds no tensors. Download or copy the file again")
    return Weights(path, (shard,), shard.header.tensors)


def read_tensors(
    weights: Weights, cache: Path | None = None, itemsize: int | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor), one at a time, in the stored dtype, mapped from the file on the CPU.

    ``itemsize``: only the tensors with so many bytes a value, for writers that order by it. A compressed shard is unpacked first (``zst.unpack``: beside itself, or into the folder ``cache``).
    """
    for shard in weights.shards:
        plain = unpack(shard.path, shard.header, cache) if shard.path.suffix == ".zst" else shard.path
        for name, info in shard.header.tensors.items():
            if itemsize is None or info.dtype.itemsize == itemsize:
                yield name, _map_tensor(plain, shard.header.positions[name], info)


def weights_exist(folder: Path) -> bool:
    """Whether ``open_weights(folder)`` would find something to open."""
    return any((folder / name).is_file() for name in (INDEX_NAME, SINGLE_NAME, f"{SINGLE_NAME}.zst"))


def _map_tensor(file: Path, position: int, info: TensorInfo) -> Tensor:
    """One tensor, mapped copy-on-write: read from disk when used, and never written back."""
    if not info.nbytes:
        return torch.empty(info.shape, dtype=info.dtype)
    try:
        data = torch.from_numpy(np.memmap(file, np.uint8, "c", position, (info.nbytes,)))
    except (OSError, ValueError) as error:
        raise MagiError(f"cannot read {file}: {error}. Download or copy the file again") from error
    aligned = data.clone() if position % info.dtype.itemsize else data
    return aligned.view(info.dtype).reshape(info.shape)


def _weights_in(folder: Path) -> Path:
    if (folder / INDEX_NAME).is_file():
        return folder / INDEX_NAME
    if weights_exist(folder):
        return folder / SINGLE_NAME
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLE_SUFFIXES)
    advice = f"; {pickles[0]} is a pickle file and is not read" if pickles else ""
    raise MagiError(f"no {INDEX_NAME} and no {SINGLE_NAME} in {folder}{advice}")


def _open_shard(path: Path) -> Shard:
    compressed = path.with_name(path.name + ".zst")
    if not path.exists() and compressed.is_file():
        path = compressed
    if not path.is_file():
        raise MagiError(f"there is no file {path}")
    try:
        if path.suffix == ".zst":
            return Shard(path, read_zst_header(path))
        with path.open("rb") as stream:
            header = read_header(stream, path)
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise MagiError(f"cannot read {path}: {error.strerror or error}") from error
    if size != header.file_size:
        raise MagiError(
            f"{path} is {'cut off' if size < header.file_size else 'too long'}: it has {size} bytes, its header says "
            f"{header.file_size}. Download or copy the file again"
        )
    return Shard(path, header)


def _open_index(path: Path) -> Weights:
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MagiError(f"{path} is not an index of a checkpoint: it has no weight_map with tensor and file names")
    require_plain_names(weight_map, path)
    names_by_file: dict[str, set[str]] = defaultdict(set)
    for name, file_name in weight_map.items():
        names_by_file[_plain_name(file_name, path)].add(name)
    paths = {file_name: path.with_name(file_name) for file_name in sorted(names_by_file)}
    missing = [
        name for name, file in paths.items() if not file.is_file() and not file.with_name(name + ".zst").is_file()
    ]
    if missing:
        raise MagiError(
            f"{path.parent} lacks {len(missing)} of {len(paths)} files named in {path.name}: {', '.join(missing[:10])}. "
            "The download is not complete"
        )
    shards = []
    tensors: dict[str, TensorInfo] = {}
    for file_name, file in paths.items():
        shard = _open_shard(file)
        _refuse_outside(shard.path, path.parent)
        wrong = sorted(names_by_file[file_name] ^ shard.header.tensors.keys())
        if wrong:
            raise MagiError(
                f"{path.name} and {file_name} do not agree about {len(wrong)} tensors: {', '.join(wrong[:10])}. "
                "They are from different checkpoints or damaged; download the folder again"
            )
        shards.append(shard)
        tensors |= shard.header.tensors
    return Weights(path, tuple(shards), tensors)


def _plain_name(file_name: object, index: Path) -> str:
    """A file name of an index, refused unless it is just a name: no folder, drive, parent or hidden stream in it."""
    valid = isinstance(file_name, str) and file_name.endswith(".safetensors") and file_name.isprintable()
    if not valid or any(mark in str(file_name) for mark in ("/", "\\", ":", "..")) or len(str(file_name)) > 200:
        raise MagiError(
            f"the index {index} names the file {ascii(file_name)[:80]}; only names of safetensors files "
            "in the index's own folder are allowed. Do not use this download"
        )
    return str(file_name)


def _refuse_outside(file: Path, folder: Path) -> None:
    """Refuse a shard that is a link to elsewhere, except into the blob store of the Hugging Face cache it lies in."""
    real = file.resolve()
    allowed = [folder.resolve()]
    parts = folder.absolute().parts
    if "snapshots" in parts:
        allowed.append(Path(*parts[: parts.index("snapshots")]).resolve() / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise MagiError(f"{file} is a link to {real}, outside the checkpoint's folder; put the file itself there")
