"""T5 encoders in GGUF files, llama.cpp's format (``t5-v1_1-xxl-encoder-Q8_0.gguf``): their tensors by Transformers' names.

Weights lie there in blocks of 2 to 8 bits; here they are restored one tensor at a time, so the file saves disk and download, not memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magi_core.errors import MagiError, missing_extra

SUFFIX = ".gguf"
_LAYER = re.compile(r"enc\.blk\.(\d+)\.(\w+)\.weight")
_IN_LAYER = {
    "attn_q": "0.SelfAttention.q",
    "attn_k": "0.SelfAttention.k",
    "attn_v": "0.SelfAttention.v",
    "attn_o": "0.SelfAttention.o",
    "attn_rel_b": "0.SelfAttention.relative_attention_bias",
    "attn_norm": "0.layer_norm",
    "ffn_gate": "1.DenseReluDense.wi_0",
    "ffn_up": "1.DenseReluDense.wi_1",
    "ffn_down": "1.DenseReluDense.wo",
    "ffn_norm": "1.layer_norm",
}
_OUTSIDE = {"token_embd.weight": "shared.weight", "enc.output_norm.weight": "encoder.final_layer_norm.weight"}


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """A tensor that is still in its file. ``kind`` is how its numbers are written: "Q8_0", "F16"."""

    shape: tuple[int, ...]
    kind: str
    data: Any
    path: Path

    @property
    def nbytes(self) -> int:
        """In the file."""
        return int(self.data.nbytes)

    def values(self) -> Tensor:
        """The numbers that the file stands for, float32; raises MagiError for a kind that cannot be restored."""
        from gguf import GGMLQuantizationType, quants

        try:
            restored = quants.dequantize(self.data, GGMLQuantizationType[self.kind])
        except (NotImplementedError, ValueError) as error:
            raise MagiError(
                f"{self.path} holds weights as {self.kind}, which cannot be restored; choose a Q8_0 or Q4_K_M file"
            ) from error
        return torch.from_numpy(np.array(restored, np.float32)).reshape(self.shape)


def open_gguf(path: Path) -> dict[str, GgufTensor]:
    """The tensors of a T5 encoder by Transformers' names; others keep the names that they have. Reads the header only.

    Raises MagiError when the package ``gguf`` is missing and when the file is damaged.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise missing_extra("gguf", "gguf", f"reading {path}") from error

    class Bounded(GGUFReader):  # type: ignore[misc]
        """Refuses what lies behind the file's end, where the package reads nothing, for as many times as a damaged length says."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **named: Any) -> Any:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise ValueError(f"it needs {end} bytes and has {len(self.data)}")
            return super()._get(offset, dtype, count, *order, **named)

    try:
        return {
            _name(tensor.name): GgufTensor(
                tuple(int(side) for side in reversed(tensor.shape)), tensor.tensor_type.name, tensor.data, path
            )
            for tensor in Bounded(path).tensors
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise MagiError(f"cannot read the text encoder's weights {path}: {error}. Fetch the file again") from error


def _name(stored: str) -> str:
    found = _LAYER.fullmatch(stored)
    if found and found[2] in _IN_LAYER:
        return f"encoder.block.{found[1]}.layer.{_IN_LAYER[found[2]]}.weight"
    return _OUTSIDE.get(stored, stored)
