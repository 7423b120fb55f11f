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
from magi_core.denoise.guidance import Runner, Window
from magi_core.errors import MagiError
from magi_core.kernels import attention
from magi_core.lora import Lora, read, use
from magi_core.memory.streaming import Place
from magi_core.model import KVCache, MagiDiT
from magi_core.parallel.launch import Crew, InProcess, Spawned
from magi_core.parallel.wire import Packed, pack, unpack
from magi_core.parallel.worker import Build, Strategy, WindowMessage, Worker
from magi_core.text.caption import Caption


def start(build: Build, devices: Sequence[str], strategy: Strategy | None = None) -> Engine:
    """An engine with one worker a device, like "cuda:0", or "cpu"; a single device needs no process of its own.

    build: makes the model in every worker; it is sent there. Raises MagiError where a worker cannot start, say because the model does
    not fit its device.
    """
    make = partial(Worker, build=build, strategy=strategy or Strategy())
    return Engine(Spawned(make, devices) if len(devices) > 1 else InProcess(make, *devices))


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

    def __call__(self, device: torch.device) -> MagiDiT:
        attend = attention(self.attention, device)
        model = load_dit(self.files, device=device, dtype=self.dtype, attend=attend, weights=self.weights, fp8=self.fp8)
        use(model, read(self.loras, model.config))
        return model


class Engine:
    """Drives a crew of ``Worker``s; close it, or leave its ``with``, to end them."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
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
        answers = self.crew.call("dispatch", sampling, self._message(window), _number(cache))
        return unpack(answers[0], window.x.device)

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
        plain = {f.name: getattr(window, f.name) for f in fields(Window) if f.name not in ("x", "text", "null")}
        text = tuple(self._captions[caption] for caption in window.text)
        return WindowMessage(plain, pack(window.x), text, self._captions[window.null])

    def _new_number(self) -> int:
        self._numbers += 1
        return self._numbers


class RemoteCache(KVCache):
    """A cache that the workers hold."""

    def __init__(self, crew: Crew, number: int) -> None:
        super().__init__()
        self.crew, self.number = crew, number

    def keep_from(self, chunk: int) -> None:
        self.crew.call("keep_from", self.number, chunk)

    def state(self) -> dict[str, Tensor]:
        packed: Mapping[str, Packed] = self.crew.call("state", self.number)[0]
        return {name: unpack(tensor) for name, tensor in packed.items()}

    @property
    def chunks(self) -> tuple[int, ...]:
        held: tuple[int, ...] = self.crew.call("chunks", self.number)[0]
        return held


def _number(cache: KVCache) -> int:
    if not isinstance(cache, RemoteCache):
        raise MagiError("this video was begun without workers; load its session with the engine's runner to go on")
    return cache.number
