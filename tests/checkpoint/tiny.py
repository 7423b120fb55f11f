"""A miniature checkpoint to load, split and damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from magi_core.checkpoint.layout import expected_tensors
from magi_core.config import DiTConfig

TINY = DiTConfig(
    num_layers=3,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    caption_channels=8,
    caption_max_length=60,
    params_dtype=torch.float32,
)


def random_tensors(config: DiTConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the layout of ``config``: small random values, positive scales."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.rand(wanted.shape, generator=generator) + 0.5).to(wanted.dtypes[-1])
        for name, wanted in expected_tensors(config).items()
    }


def write_shards(folder: Path, tensors: dict[str, Tensor], count: int = 2) -> None:
    """``tensors`` as an index and ``count`` shards."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    weight_map = {}
    for i in range(count):
        file_name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::count]}, folder / file_name)
        weight_map |= dict.fromkeys(names[i::count], file_name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def compress(file: Path) -> Path:
    """Replace ``file`` by ``file.zst`` (with zstd's checksum)."""
    zstandard = pytest.importorskip("zstandard")
    packed = file.with_name(file.name + ".zst")
    packed.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(file.read_bytes()))
    file.unlink()
    return packed
