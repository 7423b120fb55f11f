"""A model run by several devices, for a session that does not know of it.

    with start(build, ["cuda:0", "cuda:1"]) as engine:
        session.run_by(engine.runner)

The session stays in this process with all that makes the video: latents, plan, finished chunks. The workers hold weights, keys and values.
A window goes out, a velocity comes back, so progress, previews and interrupts are the session's own, and whatever happens to a worker, no
finished chunk is lost.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from magi_core.checkpoint.find import CheckpointFiles
from magi_core.checkpoint.load import load_dit
from magi_core.config import Sampling
from magi_core.denoise.guidance import Runner
from magi_core.denoise.window import Window
from magi_core.errors import MagiError
from magi_core.images import Frames
from magi_core.kernels import attention
from magi_core.lora import Lora, read, use
from magi_core.memory.streaming import Place
from magi_core.model import KVCache, MagiDiT
from magi_core.parallel.launch import Crew, InProcess, Spawned
from magi_core.parallel.launch_ray import RayCrew, on_ray
from magi_core.parallel.units import share_of
from magi_core.parallel.wire import Packed, pack, unpack
from magi_core.parallel.worker import Build, Decoder, ForeseenMessage, Strategy, WindowMessage, Worker
from magi_core.text.caption import Caption
from magi_core.vae.parts import joined

PLAIN = [field.name for field in fields(Window) if field.name not in ("x", "text", "null", "foresee")]
"""What a window says in numbers."""


def start(
    build: Build, devices: Sequence[str], strategy: Strategy | None = None, decoder: Decoder | None = None
) -> Engine:
    """An engine with one worker a device, like "cuda:0", or "cpu"; a single device needs no process of its own.

    Devices "ray:cuda" or "ray:cpu", all the same, are those of a Ray cluster that is started here for the run; "ray:cuda@10.0.0.1:6379"
    are those of the cluster at that address, and "ray:cuda@auto" of the one that this host is part of.

    build: makes the model in every worker; it is sent there. decoder: for ``Engine.decode``. Raises MagiError where a worker cannot
    start, say because the model does not fit its device.
    """
    make = partial(Worker, build=build, strategy=strategy or Strategy(), decoder=decoder)
    crew: Crew
    if on_ray(devices[0]):
        crew = RayCrew(make, devices)
    else:
        crew = Spawned(make, devices) if len(devices) > 1 else InProcess(make, *devices)
    return Engine(crew, ahead=strategy is not None and strategy.pipeline > 1)


@dataclass(frozen=True)
class FromFiles:
    """Reads a checkpoint's model in a worker."""

    files: CheckpointFiles
    dtype: torch.dtype | None = None
    """What to compute in; None: the model's own."""
    attention: str = "auto"
    """The kernel."""
    weights: Place = "resident"
    fp8: bool = False
    loras: tuple[Lora, ...] = ()

    def __call__(self, device: torch.device, part: tuple[int, int] = (0, 1)) -> MagiDiT:
        layers = share_of(self.files.config.dit.num_layers, *part)
        model = load_dit(
            self.files,
            device=device,
            dtype=self.dtype,
            attend=attention(self.attention, device),
            weights=self.weights,
            fp8=self.fp8,
            layers=None if part == (0, 1) else layers,
        )
        use(model, read(self.loras, model.config))
        return model


class Engine:
    """Drives a crew of ``Worker``s; close it, or leave its ``with``, to end them."""

    def __init__(self, crew: Crew, *, ahead: bool = False) -> None:
        """ahead: the workers stand in a line, and begin a step before the one ahead of it is done."""
        self.crew, self._ahead = crew, ahead
        self._begun: Begun | None = None
        self._captions: weakref.WeakKeyDictionary[Caption, int] = weakref.WeakKeyDictionary()
        self._numbers = 0
        self._released: list[int] = []

    @property
    def runner(self) -> Runner:
        """What a session is given."""
        return Runner(self._dispatch, self._remember, self._place)

    @property
    def alive(self) -> bool:
        """False once a worker failed or ended, or the engine was closed: then another one must be started."""
        return self.crew.alive

    def decode(self, latents: Tensor) -> Frames:
        """uint8 frames [4 t, H, W, 3] of scaled latents [1, C, t, h, w], a part from every worker: between two steps, from any thread.

        Not for workers in a line: what they have sent each other for the next step may hold a GPU up until that is asked for.
        """
        if self._ahead:
            raise ValueError("devices in a line do not decode")
        return joined([answer for answer in self.crew.call("decode", pack(latents)) if answer is not None])

    def sent(self) -> list[dict[str, int]]:
        """By worker, the bytes it sent to others so far, by kind of exchange."""
        return self.crew.call("sent")

    def close(self) -> None:
        self.crew.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _dispatch(self, model: MagiDiT, sampling: Sampling, window: Window, cache: KVCache) -> Tensor:
        if self._ahead:
            return self._advance(sampling, window, _number(cache))
        answers = self.crew.call("dispatch", sampling, self._message(window), _number(cache))
        return unpack(answers[0], window.x.device)

    def _advance(self, sampling: Sampling, window: Window, cache: int) -> Tensor:
        """The workers are only told to go on where they have begun just this step: to the bit, the same latents."""
        begun, self._begun = self._begun, None
        message = None if begun and begun.is_this(sampling, window, cache) else self._message(window)
        then = window.foresee()
        following = None
        if then is not None:
            following = ForeseenMessage(self._message(then.window), then.sources, then.sizes, then.held)
        velocity = unpack(self.crew.call("advance", sampling, message, following, cache)[0], window.x.device)
        if then is not None:
            self._begun = Begun(sampling, then.after(window.x, velocity), cache)
        return velocity

    def _remember(self, model: MagiDiT, sampling: Sampling, window: Window, cache: KVCache) -> None:
        self.crew.call("remember", sampling, self._message(window), _number(cache))

    def _place(self, cache: KVCache) -> KVCache:
        self._drop_released()
        number = self._new_number()
        self.crew.call("place", number, {name: pack(tensor) for name, tensor in cache.state().items()})
        remote = RemoteCache(self.crew, number)
        weakref.finalize(remote, self._released.append, number)
        return remote

    def _drop_released(self) -> None:
        """Caches that no session knows any more; workers are told when next one speaks to them, never by the garbage collector."""
        while self._released:
            self.crew.call("drop", self._released.pop())

    def _message(self, window: Window) -> WindowMessage:
        captions = dict.fromkeys((window.null, *window.text))
        new = {caption: self._new_number() for caption in captions if caption not in self._captions}
        self._captions.update(new)
        if new:
            parts = {number: (pack(c.embedding), pack(c.mask)) for c, number in new.items()}
            self.crew.call("learn", parts, list(self._captions.values()))
        plain = {name: getattr(window, name) for name in PLAIN}
        text = tuple(self._captions[caption] for caption in window.text)
        return WindowMessage(plain, pack(window.x), text, self._captions[window.null])

    def _new_number(self) -> int:
        self._numbers += 1
        return self._numbers


@dataclass(frozen=True, eq=False)
class Begun:
    """The step that workers in a line have begun already."""

    sampling: Sampling
    window: Window
    cache: int

    def is_this(self, sampling: Sampling, window: Window, cache: int) -> bool:
        mine, asked = (self.window.null, *self.window.text), (window.null, *window.text)
        return (
            (self.sampling, self.cache) == (sampling, cache)
            and all(getattr(self.window, name) == getattr(window, name) for name in PLAIN)
            and all(one is other for one, other in zip(mine, asked, strict=True))
            and torch.equal(self.window.x, window.x)
        )


class RemoteCache(KVCache):
    """A cache that the workers hold."""

    def __init__(self, crew: Crew, number: int) -> None:
        super().__init__()
        self.crew, self.number = crew, number

    def keep_from(self, chunk: int) -> None:
        self.crew.call("keep_from", self.number, chunk)

    def state(self) -> dict[str, Tensor]:
        parts: list[Mapping[str, Packed] | None] = self.crew.call("state", self.number)
        return {name: unpack(tensor) for part in parts if part is not None for name, tensor in part.items()}

    @property
    def chunks(self) -> tuple[int, ...]:
        held: tuple[int, ...] = self.crew.call("chunks", self.number)[0]
        return held


def _number(cache: KVCache) -> int:
    if not isinstance(cache, RemoteCache):
        raise MagiError("this video was begun without workers; load its session with the engine's runner to go on")
    return cache.number
