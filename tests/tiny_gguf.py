"""T5 weights in GGUF files as llama.cpp's converter writes them: its names, matrices in blocks of few bits, norms as they are."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor

WHOLE = {"norm": Kind.F32, "relative_attention_bias": Kind.F16}
"""What converters leave unquantised."""


def write_gguf(weights: dict[str, Tensor], path: Path, kind: str, extra: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Weights by Transformers' names to a file, in blocks of ``kind`` ("Q8_0"); what the file stands for, in float32.

    extra: names of tensors of one value besides.
    """
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.block."))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, layers)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.T5ENCODER])
    meant = {}
    for name, tensor in weights.items():
        stored = next((whole for mark, whole in WHOLE.items() if mark in name), Kind[kind])
        data = gguf.quants.quantize(tensor.float().numpy(), stored)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=stored)
        meant[name] = torch.from_numpy(gguf.quants.dequantize(data, stored).copy()).reshape(tensor.shape)
    for name in extra:
        writer.add_tensor(name, torch.zeros(1).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant
