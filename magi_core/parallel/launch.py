"""Starting processes that work together, and talking to them.

Notable:
- The caller only drives: it sends the same call to every worker and waits for the answers and, at the same time, for any of them to end.
  A worker that dies is an error at once, and takes the others with it.
- ``spawn`` starts fresh interpreters. They do not import the program that runs here (which may be a server with a hundred plugins), and no
  environment variable is set for them. They meet in a private folder, so several runs in one program do not know of each other.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Condition, Lock
from types import ModuleType
from typing import Any, Protocol

import torch

from magi_core.errors import MagiError
from magi_core.parallel.world import World, alone, joined, meeting_place

log = logging.getLogger(__name__)

Make = Callable[[World], Any]
"""Builds a worker in its process; what is sent to another process must be importable there."""
GOODBYE_SECONDS = 3.0
MISSED_SECONDS = 0.5
"""How long after a failure another worker's end is taken for its cause."""
_main = Lock()


class Crew(Protocol):
    """Workers, one a device."""

    @property
    def size(self) -> int: ...

    @property
    def alive(self) -> bool:
        """Whether they can be called."""

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Every worker's answer to the same call, in order of rank; raises MagiError when one fails or ends. Then all are gone.

        Threads that call at once take turns.
        """

    def close(self) -> None: ...


class Turns:
    """A lock that is given in the order in which it was asked for: who takes it again and again does not keep others out."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._line: list[object] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        mine = object()
        try:
            with self._changed:
                self._line.append(mine)
                self._changed.wait_for(lambda: self._line[0] is mine)
            yield
        finally:
            with self._changed:
                self._line.remove(mine)
                self._changed.notify_all()


class InProcess:
    """A crew of one: this process."""

    size = 1

    def __init__(self, make: Make, device: str) -> None:
        self._worker = make(alone(device))

    @property
    def alive(self) -> bool:
        return self._worker is not None

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(self._worker, method)(*arguments)]

    def close(self) -> None:
        self._worker = None


class Spawned:
    """A crew of processes on this computer."""

    def __init__(self, make: Make, devices: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="magi-", ignore_cleanup_errors=True)
        self._devices = tuple(devices)
        self._number = 0
        self._turns = Turns()
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in devices]
        self._pipes: list[Connection] = [ours for ours, _ in pipes]
        self._processes: list[SpawnProcess] = []
        with _bare_main():
            for rank, (_, theirs) in enumerate(pipes):
                arguments = (theirs, make, rank, self._devices, Path(self._folder.name))
                process = context.Process(target=_serve, args=arguments, daemon=True, name=f"magi-{rank}")
                process.start()
                theirs.close()
                self._processes.append(process)
        self._answers()

    @property
    def size(self) -> int:
        return len(self._devices)

    @property
    def alive(self) -> bool:
        return bool(self._processes) and all(process.is_alive() for process in self._processes)

    @property
    def pids(self) -> list[int | None]:
        return [process.pid for process in self._processes]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        with self._turns.taken():
            if not self._processes:
                raise MagiError("the workers have ended; start the devices again")
            self._number += 1
            for rank, pipe in enumerate(self._pipes):
                try:
                    pipe.send((self._number, method, arguments))
                except OSError:
                    raise self._ended(rank) from None
            return self._answers()

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(GOODBYE_SECONDS)
        self._kill()

    def _answers(self) -> list[Any]:
        """What every worker says to the newest call; answers to calls that were broken off are passed over."""
        answers: dict[int, Any] = {}
        while len(answers) < self.size:
            waiting = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in answers}
            ready = wait([*waiting, *self._sentinels])
            heard = [pipe for pipe in waiting if pipe in ready]
            for pipe in heard:
                rank = waiting[pipe]
                try:
                    number, problem, value = pipe.recv()
                except (EOFError, OSError):
                    raise self._ended(rank) from None
                if problem is not None:
                    raise self._failed(rank, problem)
                if number == self._number:
                    answers[rank] = value
            if not heard:
                raise self._ended(next(rank for end, rank in self._sentinels.items() if end in ready))
        return [answers[rank] for rank in range(self.size)]

    @property
    def _sentinels(self) -> dict[int, int]:
        """What becomes ready when a process ends: its rank."""
        return {process.sentinel: rank for rank, process in enumerate(self._processes)}

    def _failed(self, rank: int, problem: str) -> MagiError:
        """Who fails may only have missed another one, who has ended."""
        wait([process.sentinel for other, process in enumerate(self._processes) if other != rank], MISSED_SECONDS)
        for other, process in enumerate(self._processes):
            if other != rank and process.exitcode:
                return self._ended(other)
        self._kill()
        return MagiError(f"worker {rank} ({self._devices[rank]}) failed: {problem}")

    def _ended(self, rank: int) -> MagiError:
        self._processes[rank].join(GOODBYE_SECONDS)
        code = self._processes[rank].exitcode
        self._kill()
        return MagiError(
            f"worker {rank} ({self._devices[rank]}) ended unexpectedly (exit code {code}); it may have run out of memory. "
            "Finished chunks are kept: start the devices again to go on"
        )

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes = []
        self._folder.cleanup()


def _serve(pipe: Connection, make: Make, rank: int, devices: Sequence[str], folder: Path) -> None:
    """A worker process: build, then answer calls until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends the workers when it wants to
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(devices)))
    number = 0
    try:
        with joined(meeting_place(folder, len(devices)), rank, len(devices), devices[rank]) as world:
            worker = make(world)
            pipe.send((number, None, None))
            while True:
                number, method, arguments = pipe.recv()
                pipe.send((number, None, getattr(worker, method)(*arguments)))
    except (EOFError, OSError):
        return  # the driver is gone
    except Exception as error:
        log.error("worker %d: %s", rank, traceback.format_exc())
        text = str(error) if isinstance(error, MagiError) else f"{type(error).__name__}: {error}"
        pipe.send((number, text, None))


@contextmanager
def _bare_main() -> Iterator[None]:
    """Processes that are started within do not import the main program."""
    with _main:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
