"""Workers on the hosts of a Ray cluster, for the same engine that drives the processes of one host.

Notable:
- Ray lives in a process of its own. It sets environment variables and signal handlers where it is imported and can be connected to one
  cluster only; so none of that happens in the program that runs here, which may use Ray itself.
- Without an address a cluster of this host alone is started for the run, in a private folder, and ends with it.
- The workers meet at a port that is free on the host of rank 0; workers of one host are neighbours in rank.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from magi_core.errors import MagiError, missing_extra
from magi_core.parallel.launch import Make, Spawned
from magi_core.parallel.world import World, joined

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

log = logging.getLogger(__name__)

ROOM_SECONDS = 300.0
"""How long a cluster may take to have room for the workers, and they to meet."""
ANSWER_SECONDS = 10.0
"""How long a cluster's head may take to answer a call."""
MISSED_SECONDS = 10.0
"""How long after a failure another worker's end is taken for its cause; Ray tells of it later than of an answer."""
CODE = Path(__file__).resolve().parents[2]
"""Where this package lies: workers on a host that has it at the same place need not have it installed."""


class OnRay(NamedTuple):
    """What a device named like "ray:cuda" or "ray:cpu@10.0.0.1:6379" asks for."""

    kind: Literal["cuda", "cpu"]
    """A GPU, or a CPU core, of whichever host has one."""
    address: str
    """Where the cluster's head listens, "auto" for the cluster that this host is part of; empty: start one here."""


def on_ray(device: str) -> OnRay | None:
    """None for a device that is not on Ray."""
    found = re.fullmatch(r"ray:(cuda|cpu)(?:@([\w.:/\[\]-]+))?", device)
    return found and OnRay(found[1], found[2] or "")  # type: ignore[arg-type]


def check_ray() -> None:
    """Raise MagiError where Ray is not installed."""
    if find_spec("ray") is None:
        raise missing_extra("ray", "cluster", "running a model on the hosts of a cluster")


class RayCrew:
    """A crew of Ray actors, all on the same kind of device."""

    def __init__(self, make: Make, devices: Sequence[str]) -> None:
        asked = on_ray(devices[0])
        if asked is None or len(set(devices)) > 1:
            raise MagiError(f"devices on Ray must all be the same; these are {', '.join(devices)[:100]}")
        check_ray()
        self.size = len(devices)
        self._folder = tempfile.TemporaryDirectory(prefix="magi-ray-", ignore_cleanup_errors=True)
        self._driver = Spawned(Cluster, ["cpu"])
        self._asking = False
        self._ask("begin", asked, make, self.size, self._folder.name)

    @property
    def alive(self) -> bool:
        return self._driver.alive

    def call(self, method: str, *arguments: Any) -> list[Any]:
        answers: list[Any] = self._ask("call", method, arguments)
        return answers

    def close(self) -> None:
        if self._driver.alive and not self._asking:
            with suppress(MagiError):  # Ray's process is gone already
                self._driver.call("end")
        self._driver.close()  # kills one that is in a call that was broken off; Ray ends the actors of a driver that is gone
        self._folder.cleanup()

    def _ask(self, method: str, *arguments: Any) -> Any:
        self._asking = True
        ((problem, value),) = self._driver.call(method, *arguments)
        self._asking = False
        if problem is not None:
            self.close()
            raise MagiError(problem)
        return value


class Cluster:
    """The process that speaks to Ray: starts the actors, and passes calls on to them.

    What is called answers with (why it failed, value): whoever asked says it to the user.
    """

    def __init__(self, world: World) -> None:
        self._home = os.getcwd()
        self._members: list[Any] = []
        self._hosts: list[str] = []

    def begin(self, asked: OnRay, make: Make, size: int, folder: str) -> tuple[str | None, None]:
        """folder: for a cluster's files that is started here."""
        try:
            self._connect(asked, size, folder)
            self._place(asked, size)
            self._meet(asked, make)
        except MagiError as error:
            return str(error), None
        return None, None

    def call(self, method: str, arguments: tuple[Any, ...]) -> tuple[str | None, list[Any] | None]:
        import ray

        sent = ray.put((method, arguments))  # once, for all
        try:
            return None, self._answers([member.call.remote(sent) for member in self._members])
        except MagiError as error:
            return str(error), None

    def end(self) -> None:
        import ray

        for member in self._members:
            ray.kill(member)
        ray.shutdown()

    def _connect(self, asked: OnRay, size: int, folder: str) -> None:
        import ray

        os.chdir(
            CODE
        )  # Ray has the workers import from where its driver is (a runtime_env would do, at many times the start)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        if asked.address:
            options["address"] = asked.address
        else:
            options |= {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": max(size, os.cpu_count() or 1),
                "_temp_dir": folder,
                "_system_config": {"worker_niceness": 0},  # else anything that this host also does comes first, by far
            }
        try:
            if ":" in asked.address:
                _call_at(asked.address)
            ray.init(**options)
        except (OSError, RuntimeError, ValueError) as error:
            if not asked.address:
                raise MagiError(f"Ray cannot be started: {error}") from error
            raise MagiError(
                f"the Ray cluster at {asked.address} cannot be joined: {error}. Is its head there, and of the same version? "
                "Where it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before the start"
            ) from error
        kind = "GPU" if asked.kind == "cuda" else "CPU"
        there = int(ray.cluster_resources().get(kind, 0))
        if there < size:
            raise MagiError(f"{size} workers are asked for, each needs a {kind}; the Ray cluster has {there}")

    def _place(self, asked: OnRay, size: int) -> None:
        """Have Ray start the actors."""
        import ray

        gpu = asked.kind == "cuda"
        member = ray.remote(num_cpus=int(not gpu), num_gpus=int(gpu), max_restarts=0)(Member)
        members = [member.remote() for _ in range(size)]
        self._members = members
        hosts = [one.host.remote() for one in members]
        ready, _ = ray.wait(hosts, num_returns=size, timeout=ROOM_SECONDS)
        if len(ready) < size:
            raise MagiError(
                f"the Ray cluster had room for {len(ready)} of {size} workers within {ROOM_SECONDS / 60:.0f} minutes; "
                "free the others' devices or ask for fewer"
            )
        try:
            placed = sorted(zip(ray.get(hosts), range(size), strict=True))
        except ray.exceptions.RayError as error:
            raise MagiError(
                "a worker cannot start on the Ray cluster; every host needs this package, Ray and Python in the same "
                f"versions as here: {' '.join(str(error).split())[-300:]}"
            ) from error
        self._hosts, self._members = [host for host, _ in placed], [members[i] for _, i in placed]

    def _meet(self, asked: OnRay, make: Make) -> None:
        size = len(self._members)
        (port,) = self._answers([self._members[0].open.remote(size)])
        place = (self._hosts[0], port)
        self._answers(
            [
                member.join.remote(make, rank, size, asked.kind, place, self._home)
                for rank, member in enumerate(self._members)
            ]
        )

    def _answers(self, references: Sequence[Any]) -> list[Any]:
        """What each says, in order of rank; raises MagiError with the first failure."""
        import ray

        waiting = list(references)
        while waiting:
            (ready,), waiting = ray.wait(waiting)
            if _problem(ready) is not None:
                raise self._failed(references)
        return [value for _, value in ray.get(list(references))]

    def _failed(self, references: Sequence[Any]) -> MagiError:
        """Who fails may only have missed another one, who has ended."""
        import ray

        until, waiting = time.monotonic() + MISSED_SECONDS, list(references)
        failed: dict[int, Problem] = {}
        while waiting and not any(problem.ended for problem in failed.values()):
            ready, waiting = ray.wait(waiting, timeout=max(0.0, until - time.monotonic()))
            if not ready:
                break
            problem = _problem(ready[0])
            if problem is not None:
                failed[references.index(ready[0])] = problem
        rank, problem = max(failed.items(), key=lambda one: one[1].ended)
        return MagiError(f"worker {rank} on the host {self._hosts[rank]} {problem.text}")


def _call_at(address: str) -> None:
    """Raise OSError or ValueError where nobody answers at an address; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()


class Problem(NamedTuple):
    text: str
    ended: bool
    """The worker is gone; else it said itself what failed."""


def _problem(reference: Any) -> Problem | None:
    """Why a call that is over has no value."""
    import ray

    try:
        said, _ = ray.get(reference)
    except ray.exceptions.RayError as error:
        log.error("Ray: %s", error)
        return Problem(
            "ended unexpectedly; it may have run out of memory. Finished chunks are kept: start the devices again to go on",
            ended=True,
        )
    return None if said is None else Problem(f"failed: {said}", ended=False)


class Member:
    """An actor: a worker in a process that Ray has started. Answers are (why it failed, value)."""

    def __init__(self) -> None:
        self._world = ExitStack()
        self._store: TCPStore | None = None
        self._worker: Any = None

    def host(self) -> str:
        """This host, as the cluster knows it."""
        import ray

        return str(ray.util.get_node_ip_address())

    def open(self, size: int) -> tuple[str | None, int | None]:
        """Where all are to meet: a port of this host."""
        return _said(lambda: self._meeting(self.host(), 0, size, opens=True).port)

    def join(
        self, make: Make, rank: int, size: int, kind: str, place: tuple[str, int], folder: str
    ) -> tuple[str | None, None]:
        def begin() -> None:
            with suppress(OSError):  # paths that count from the working folder, where this host has it
                os.chdir(folder)
            _speak_through(self.host())
            store = self._store or self._meeting(*place, size, opens=False)
            device = "cuda:0" if kind == "cuda" else "cpu"  # of those that Ray lets this process see
            self._worker = make(self._world.enter_context(joined(store, rank, size, device)))

        problem, _ = _said(begin)
        hint = " (the model's files must lie at the same path on every host)"
        return problem and problem + hint, None

    def call(self, sent: tuple[str, tuple[Any, ...]]) -> tuple[str | None, Any]:
        method, arguments = sent
        return _said(lambda: getattr(self._worker, method)(*arguments))

    def _meeting(self, host: str, port: int, size: int, *, opens: bool) -> TCPStore:
        import torch.distributed as dist

        patience = timedelta(seconds=ROOM_SECONDS)
        self._store = dist.TCPStore(host, port, size, opens, patience, wait_for_workers=False)  # type: ignore[attr-defined]
        return self._store


def _said(act: Callable[[], Any]) -> tuple[str | None, Any]:
    try:
        return None, act()
    except Exception as error:
        log.error("%s", traceback.format_exc())
        return str(error) if isinstance(error, MagiError) else f"{type(error).__name__}: {error}", None


def _speak_through(host: str) -> None:
    """Have gloo in this process use the network on which the cluster knows this host, not the one that its name stands for."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
