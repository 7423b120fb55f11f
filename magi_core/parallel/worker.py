"""What one worker does: run its share of every window's passes, and hold the keys and values.

One class for every launcher and every strategy. Calls and answers are plain values and arrays; only rank 0 answers with latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from magi_core.config import Sampling
from magi_core.denoise.guidance import dispatch, remember
from magi_core.denoise.window import Foreseen, Window
from magi_core.errors import MagiError
from magi_core.kernels import attention_lse
from magi_core.model import KVCache, MagiDiT
from magi_core.parallel.passes import run_on
from magi_core.parallel.pipeline import Line
from magi_core.parallel.spread import Exchange, spread
from magi_core.parallel.units import share_of
from magi_core.parallel.wire import Packed, pack, unpack
from magi_core.parallel.world import World
from magi_core.text.caption import Caption
from magi_core.vae import Tiling, ViTVAE, load_vae
from magi_core.vae.parts import Part, decode_part, parts_of

Build = Callable[[torch.device, tuple[int, int]], MagiDiT]
"""Makes the model on a worker's device, with part i of n parts of its layers, those of ``share_of``; of (i, n)."""


@dataclass(frozen=True)
class Strategy:
    """How a model is run by several devices: ``passes`` groups share the passes of guidance, or ``pipeline`` groups the layers.

    Each group's members share every layer that the group has.
    """

    passes: int = 1
    """Groups that the passes of guidance are dealt out to; must divide the devices."""
    exchange: Exchange = "keys"
    stages: int = 1
    """Portions in which keys arrive, while those that are there are attended to."""
    pipeline: int = 1
    """Groups that hold a part of the layers each, and stand in a line; must divide the devices. Not together with ``passes``."""


@dataclass(frozen=True)
class Decoder:
    """Reads a VAE in a worker, and decodes with it."""

    folder: Path
    dtype: torch.dtype
    tiling: Tiling
    scale_factor: float

    def read(self, device: torch.device) -> ViTVAE:
        return load_vae(self.folder, device, self.dtype)


@dataclass(frozen=True)
class WindowMessage:
    """A ``Window`` on its way: captions go by number."""

    plain: Mapping[str, object]
    """The fields that are numbers."""
    x: Packed
    text: tuple[int, ...]
    null: int


@dataclass(frozen=True)
class ForeseenMessage:
    """A ``Foreseen`` on its way."""

    window: WindowMessage
    sources: tuple[int | None, ...]
    sizes: tuple[float, ...]
    held: tuple[int, ...]


class Worker:
    """Rank ``world.rank`` of those who run a model together."""

    def __init__(self, world: World, build: Build, strategy: Strategy, decoder: Decoder | None = None) -> None:
        for count, what in ((strategy.passes, "the passes of guidance"), (strategy.pipeline, "the layers")):
            if world.size % count:
                raise MagiError(f"{world.size} devices cannot be split in {count} equal groups for {what}")
        self.world = world
        together, across = world.split(strategy.passes * strategy.pipeline)
        part = (across.rank, across.size) if strategy.pipeline > 1 else (0, 1)
        self.model = build(world.device, part)
        numbers = share_of(self.model.config.num_layers, *part)
        if together.size > 1:
            lse = attention_lse("auto", world.device)
            spread(self.model, numbers, together, strategy.exchange, strategy.stages, lse)
        self._run = run_on(across) if strategy.passes > 1 else None
        self._numbers = numbers
        self._line = Line(self.model, numbers, across, world.everyone) if strategy.pipeline > 1 else None
        self._tells = together.rank == 0 if strategy.pipeline > 1 else world.rank == 0
        self._decoding = None if decoder is None else (decoder, decoder.read(world.device))
        self._caches: dict[int, KVCache] = {}
        self._captions: dict[int, Caption] = {}

    def learn(self, captions: Mapping[int, tuple[Packed, Packed]], needed: Sequence[int]) -> None:
        """Take new captions, and forget all that are not ``needed`` any more."""
        new = {number: Caption(*map(self._here, parts)) for number, parts in captions.items()}
        self._captions = {number: caption for number, caption in (self._captions | new).items() if number in needed}

    def place(self, cache: int, state: Mapping[str, Packed]) -> None:
        """Hold a new cache with this content, of the layers that are here."""
        here = {"chunks", *(f"layer_{number}" for number in self._numbers)}
        self._caches[cache] = KVCache.from_state({n: self._here(packed) for n, packed in state.items() if n in here})

    def dispatch(self, sampling: Sampling, message: WindowMessage, cache: int) -> Packed | None:
        """The window's velocity, from rank 0."""
        run = partial(dispatch, run=self._run) if self._run else dispatch
        velocity = run(self.model, sampling, self._window(message), self._caches[cache])
        return pack(velocity) if self.world.rank == 0 else None

    def advance(
        self, sampling: Sampling, message: WindowMessage | None, then: ForeseenMessage | None, cache: int
    ) -> Packed | None:
        """As ``dispatch``, by devices in a line: see ``Line.step``."""
        window = None if message is None else self._window(message)
        after = None if then is None else Foreseen(self._window(then.window), then.sources, then.sizes, then.held)
        velocity = self._in_line.step(sampling, window, after, self._caches[cache])
        return pack(velocity) if self.world.rank == 0 and velocity is not None else None

    def remember(self, sampling: Sampling, message: WindowMessage, cache: int) -> None:
        run = self._line.remember if self._line else partial(remember, self.model)
        run(sampling, self._window(message), self._caches[cache])

    def keep_from(self, cache: int, chunk: int) -> None:
        self._caches[cache].keep_from(chunk)

    def state(self, cache: int) -> dict[str, Packed] | None:
        """All that a cache holds, from one of those that hold the same."""
        held = self._caches[cache].state().items() if self._tells else None
        return None if held is None else {name: pack(tensor) for name, tensor in held}

    def chunks(self, cache: int) -> tuple[int, ...]:
        return self._caches[cache].chunks

    def drop(self, cache: int) -> None:
        if self._line:
            self._line.drop()
        del self._caches[cache]

    def decode(self, packed: Packed) -> tuple[Part, NDArray[np.uint8]] | None:
        """This worker's part of the frames of a chunk's latents; None where there are fewer parts than workers."""
        if self._decoding is None:
            raise ValueError("these devices have no VAE")
        (decoder, vae), latents = self._decoding, self._here(packed)
        parts = parts_of(latents.shape[2], latents.shape[3], decoder.tiling, vae.config, self.world.size)
        if self.world.rank >= len(parts):
            return None
        part = parts[self.world.rank]
        return part, decode_part(vae, latents, decoder.scale_factor, decoder.tiling, part)

    def sent(self) -> dict[str, int]:
        """Bytes sent to other workers so far, by kind of exchange."""
        return dict(self.world.meter.sent)

    @property
    def _in_line(self) -> Line:
        if self._line is None:
            raise ValueError("these devices do not stand in a line")
        return self._line

    def _here(self, packed: Packed) -> torch.Tensor:
        return unpack(packed, self.world.device)

    def _window(self, message: WindowMessage) -> Window:
        text = tuple(self._captions[number] for number in message.text)
        null = self._captions[message.null]
        return Window(x=self._here(message.x), text=text, null=null, **message.plain)  # type: ignore[arg-type]
