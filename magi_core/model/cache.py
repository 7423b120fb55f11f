"""Keys and values of finished chunks (spec 6).

Only the chunks that later chunks read are held, so memory does not grow with the length of the video.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from magi_core.errors import MagiError


class KVCache:
    """Per layer, the chunks kept: chunk number -> [tokens, groups, 2 d], key (normed, rotated) beside raw value."""

    def __init__(self) -> None:
        self._layers: dict[int, dict[int, Tensor]] = {}

    @property
    def chunks(self) -> tuple[int, ...]:
        """The numbers of the chunks held, oldest first."""
        return tuple(sorted(self._layers.get(0, ())))

    def read(self, layer: int, first: int, end: int) -> list[Tensor]:
        """The rows of chunks [first, end), one tensor a chunk; raises MagiError where one is not held."""
        held = self._layers.get(layer, {})
        missing = [chunk for chunk in range(first, end) if chunk not in held]
        if missing:
            raise MagiError(
                f"the KV cache does not hold chunk {missing[0]} (it holds {list(self.chunks)}); "
                "a chunk must be written before later chunks read it, and kept as long as they do"
            )
        return [held[chunk] for chunk in range(first, end)]

    def write(self, layer: int, chunk: int, rows: Tensor) -> None:
        """Store a chunk's rows [tokens, groups, 2 d]: in place where the chunk is held already."""
        held = self._layers.setdefault(layer, {})
        if chunk in held and held[chunk].shape == rows.shape:
            held[chunk].copy_(rows.detach())
        else:
            held[chunk] = rows.detach().clone()

    def keep_from(self, chunk: int) -> None:
        """Forget all chunks before ``chunk``."""
        for held in self._layers.values():
            for old in [number for number in held if number < chunk]:
                del held[old]

    def state(self) -> dict[str, Tensor]:
        """Everything held, as plain tensors: ``chunks`` [n] int64, ``layer_{i}`` [n, tokens, groups, 2 d]."""
        chunks = self.chunks
        state = {"chunks": torch.tensor(chunks, dtype=torch.int64)}
        if chunks:
            state |= {f"layer_{i}": torch.stack([held[c] for c in chunks]) for i, held in self._layers.items()}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> KVCache:
        """The cache that ``state`` was taken of."""
        cache = cls()
        chunks = state["chunks"].tolist()
        for layer in range(len(state) - 1):
            for chunk, rows in zip(chunks, state[f"layer_{layer}"], strict=True):
                cache.write(layer, chunk, rows)
        return cache
