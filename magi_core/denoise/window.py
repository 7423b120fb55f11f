"""What one step gives to the model: neighbouring chunks with all that is said of them; and the step after it, as far as it can be foreseen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magi_core.text.caption import Caption


def _unforeseen() -> None:
    return None


@dataclass(frozen=True, eq=False)
class Window:
    """D neighbouring chunks as one step gives them to the model. Tuples have D entries, the leftmost chunk first."""

    x: Tensor
    """[1, C, D * chunk_width, H, W], float32."""
    times: tuple[float, ...]
    """0 noise .. 1 clean."""
    text: tuple[Caption, ...]
    null: Caption
    """What chunks are told that are told nothing."""
    first_chunk: int
    """Place of the leftmost chunk in the video."""
    kv_chunks: tuple[tuple[int, int], ...]
    """The chunks of the video, [start, end), that each chunk sees."""
    extra: bool = False
    """The leftmost chunk is clean and goes along only so that its keys and values are stored."""
    near_clean: bool = False
    """The leftmost chunk that is being denoised is nearly clean."""
    step_embedding: float | None = None
    """The distilled model's step size; None for base models."""
    write_chunks: int = 0
    """How many chunks, from left, are stored in the cache."""
    foresee: Callable[[], Foreseen | None] = _unforeseen
    """The step that follows unless the plan is changed; for whoever can begin it before this one is done."""


@dataclass(frozen=True, eq=False)
class Foreseen:
    """The step after a window's, as far as it is known before the window's velocity is. Tuples go by the chunks of its own window."""

    window: Window
    """Of x counts what does not follow from the velocity: new chunks, and frames that are held."""
    sources: tuple[int | None, ...]
    """Which of the earlier window's chunks each one goes on with; None: it is new."""
    sizes: tuple[float, ...]
    """The step in time that its source makes."""
    held: tuple[int, ...]
    """How many leading frames are held, and are in x."""

    def chunk(self, i: int, x: Tensor, velocity: Tensor) -> Tensor:
        """x of chunk ``i``, given that of its source and its velocity, all [1, C, chunk_width, H, W]: as a session computes it."""
        known = self.window.x[:, :, i * x.shape[2] : i * x.shape[2] + self.held[i]]
        return torch.cat([known, (x + velocity * self.sizes[i])[:, :, self.held[i] :]], dim=2)

    def after(self, x: Tensor, velocity: Tensor) -> Window:
        """The window, once the earlier one's velocity is known; x and velocity [1, C, chunks * chunk_width, H, W]."""
        width = self.window.x.shape[2] // len(self.sources)
        before, moves = torch.split(x, width, dim=2), torch.split(velocity, width, dim=2)
        chunks = [
            new if source is None else self.chunk(i, before[source], moves[source])
            for i, (source, new) in enumerate(zip(self.sources, torch.split(self.window.x, width, dim=2), strict=True))
        ]
        return replace(self.window, x=torch.cat(chunks, dim=2))
