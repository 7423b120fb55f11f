"""Any checkpoint into one safetensors file that carries its configuration, written as a stream.

The file is written tensor by tensor (a 24B model needs no 48 GB of memory), beside its target, and renamed when complete.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from magi_core.checkpoint.find import METADATA_CONFIG, METADATA_NOTES, CheckpointFiles, find_checkpoint
from magi_core.checkpoint.header import TensorInfo, header_bytes
from magi_core.checkpoint.layout import PLAIN_DTYPES, compare_layout
from magi_core.checkpoint.load import check_values
from magi_core.checkpoint.reader import open_weights, read_tensors
from magi_core.config_file import config_document
from magi_core.errors import MagiError
from magi_core.files import atomic_write

PACKAGE = "comfyui-magi"
EXACT_SUFFIXES = ("rope.bands", "_scale")
"""A few bytes that decide much: rotary frequencies and fp8 scales keep their dtype."""


def convert(
    source: str | Path, target: Path, dtype: torch.dtype | None = None, *, cache: Path | None = None
) -> tuple[str, ...]:
    """Write the transformer that ``source`` names (see ``find_checkpoint``) to the safetensors file ``target``.

    ``dtype``: float16, bfloat16 or float32 for the weights (fp8 weights and scales stay as they are); None keeps what is stored,
    bit for bit. Metadata: the configuration as JSON, the model's name, the version of this program. Returns the notes of
    ``find_checkpoint``: what was guessed about the model. Raises MagiError when the source does not fit its configuration, holds
    NaN, or has values too large for ``dtype``, and when the disk is full; ``target`` is then left as it was.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise MagiError(f"the target {target} must be a file name that ends in .safetensors")
    if dtype is not None and dtype not in PLAIN_DTYPES:
        raise MagiError(f"weights cannot be written as {dtype}; choose float16, bfloat16, float32 or as stored")
    files = find_checkpoint(source)
    if files.dit is None:
        raise MagiError(files.missing[0])
    weights = open_weights(files.dit)
    compare_layout(weights.tensors, files.config.dit, weights.path)
    sizes = sorted({info.dtype.itemsize for info in weights.tensors.values()}, reverse=True)
    written = {
        name: TensorInfo(info.shape, _stored_as(name, info.dtype, dtype))
        for itemsize in sizes
        for name, info in weights.tensors.items()
        if info.dtype.itemsize == itemsize
    }
    start = header_bytes(written, _metadata(files))
    total = len(start) + sum(info.nbytes for info in written.values())
    with atomic_write(target) as temporary:
        free = shutil.disk_usage(temporary.parent).free
        if free < total:
            raise MagiError(f"{target} needs {total / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free there")
        with temporary.open("wb") as output:
            output.write(start)
            for itemsize in sizes:
                for name, tensor in read_tensors(weights, cache, itemsize):
                    converted = tensor.to(written[name].dtype)
                    check_values(name, converted, weights.path)
                    output.write(_bytes(converted))
    return files.notes


def _stored_as(name: str, stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    if wanted is None or stored not in PLAIN_DTYPES or name.endswith(EXACT_SUFFIXES):
        return stored
    return wanted


def _metadata(files: CheckpointFiles) -> dict[str, str]:
    """Without the configuration's paths: they are of this machine and mean nothing elsewhere."""
    portable = replace(files.config, load="", t5_pretrained="", vae_pretrained="")
    try:
        release = version(PACKAGE)
    except PackageNotFoundError:
        release = "source"
    document = json.dumps(config_document(portable), separators=(",", ":"))
    return {
        "format": "pt",
        METADATA_CONFIG: document,
        METADATA_NOTES: "; ".join(files.notes),
        "magi_source": files.name,
        "magi_version": release,
    }


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
