"""The processes of a training run: one, or those that ``torchrun`` has started, each with a device of its own.

Gradients are averaged by torch's DistributedDataParallel; ``shard`` asks for its fully sharded form, where weights, gradients, moments and
averages lie in equal parts on all devices and a layer is whole only while it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from magi_core.errors import MagiError

PATIENCE = timedelta(hours=24)
"""The others wait so long for the first process, which encodes videos and draws sample sheets alone."""


@dataclass(frozen=True)
class Ranks:
    """This process among ``count``, and its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a CPU tensor over all processes."""
        if self.count > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def as_first(self, value: float) -> float:
        """The first process's value, so that all decide alike."""
        shared = torch.tensor(value, dtype=torch.float64)
        if self.count > 1:
            dist.broadcast(shared, 0)
        return float(shared)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process goes through the block before the others begin it."""
        if not self.first:
            dist.barrier()
        yield
        if self.first and self.count > 1:
            dist.barrier()


@contextmanager
def launched(device: torch.device) -> Iterator[Ranks]:
    """What ``torchrun`` has started, or this process alone on ``device``. Under torchrun ``device`` says only what kind it is."""
    if not dist.is_torchelastic_launched():
        yield Ranks(0, 1, device)
        return
    if device.type == "cuda":
        local = dist.get_node_local_rank()
        if local >= torch.cuda.device_count():
            raise MagiError(
                f"torchrun has started more processes than the {torch.cuda.device_count()} GPUs; set --nproc-per-node to that"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def spread(module: nn.Module, layers: Iterator[nn.Module], ranks: Ranks, *, shard: bool) -> nn.Module:
    """``module`` over all processes, its parameters where they were (or in shards, each of ``layers`` by itself)."""
    if ranks.count == 1:
        return module
    if shard:
        for layer in layers:
            fully_shard(layer)
        fully_shard(module)
        return module
    return DistributedDataParallel(module, device_ids=[ranks.device] if ranks.device.type == "cuda" else None)


def gathering(module: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    """Of several backward passes of a step only the ``last`` one exchanges gradients."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()
