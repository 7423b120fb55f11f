"""Group-cast and group-reduce between processes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from magi_core.parallel.collectives import all_gather, group_cast, group_reduce
from magi_core.parallel.launch import Spawned
from magi_core.parallel.world import joined, meeting_place


@pytest.mark.parametrize("crew", ["two", "four"])
def test_cast_delivers_and_reduce_is_its_transpose(crew: str, request: pytest.FixtureRequest) -> None:
    """Spans may overlap, go to several ranks, or be none at all; each is the other's gradient."""
    workers: Spawned = request.getfixturevalue(crew)
    draw, rows = random.Random(1), 7
    for _ in range(4):
        sends = [
            [
                [tuple(sorted((draw.randint(0, rows), draw.randint(0, rows)))) for _ in range(draw.randint(0, 3))]
                for _ in range(workers.size)
            ]
            for _ in range(workers.size)
        ]
        for rank, answer in enumerate(workers.call("run", "collectives", sends, rows)):
            leaving = sum(b - a for to, spans in enumerate(sends[rank]) if to != rank for a, b in spans)
            assert answer.pop("sent") == leaving * 3 * 8
            assert all(answer.values()), answer


def test_partial_attention_comes_back_as_one(four: Spawned) -> None:
    """Of queries that visit no rank, one, several; row 0 of rank 0 none at all. With its gradient, in float64."""
    rows, draw = 5, random.Random(2)
    reads = [[[(draw.randint(1, 3), draw.randint(3, rows))] for _ in range(4)] for _ in range(4)]
    reads[1][2], reads[3][0] = [], [(0, 2), (3, 5)]
    for answer in four.call("run", "merged", reads, rows):
        assert max(answer.values()) < 1e-12, answer


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NCCL needs a GPU")
def test_one_gpu_speaks_nccl(tmp_path: Path) -> None:
    with joined(meeting_place(tmp_path, 1), 0, 1, "cuda:0") as world:
        rows = torch.arange(6.0, device="cuda:0").view(3, 2)
        there = group_cast(rows, [[(1, 3), (0, 1)]], [3], world.everyone)
        assert torch.equal(there, rows[[1, 2, 0]])
        assert torch.equal(group_reduce(there, [[(1, 3), (0, 1)]], [3], 3, world.everyone), rows)
        assert torch.equal(all_gather(rows, world.everyone)[0], rows)
