"""The report, the documented table, and floors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from magi_core.cost.estimate import Around, amount, estimate, place
from magi_core.cost.machines import H100, RTX4090
from magi_core.cost.memory import Use, tokens_per_chunk
from magi_core.cost.passes import chunk_passes, operations
from magi_core.presets import PRESETS

TABLE = (Path(__file__).parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")
COLUMNS = (("", 64), ("", 32), ("-distill", 16), ("-distill", 12), ("-distill", 8))


def test_the_documented_operations_are_the_computed_ones() -> None:
    rows = re.findall(r"^\| (4\.5B|24B) (\d+) x (\d+) \|(.*)\|$", TABLE, re.MULTILINE)
    assert len(rows) == 7
    for model, width, height, cells in rows:
        tokens, *amounts = (cell.strip() for cell in cells.split("|"))
        for (kind, steps), said in zip(COLUMNS, amounts, strict=False):
            config = PRESETS[model.lower() + kind]
            counted = tokens_per_chunk(config, config.sampling, int(height), int(width))
            done = operations(config.dit, chunk_passes(config.sampling.changed(steps=steps)), counted, 200)
            assert float(said) == pytest.approx(done.total / 1e15, rel=6e-3), (model, width, kind, steps)
            assert tokens == f"{counted:,}"


def test_the_floor_follows_what_takes_longest() -> None:
    use = Use.of(PRESETS["4.5b-distill"])
    on_h100 = estimate(use, H100, Around(), seconds=4, words=200)
    assert on_h100.floor == pytest.approx(8.91, rel=1e-2)  # as documented
    assert (on_h100.chunks, on_h100.traffic.host) == (4, 0)
    slow_memory = replace(on_h100, machine=replace(H100, memory=1e9))
    assert slow_memory.floor == pytest.approx(slow_memory.memory_seconds + slow_memory.decode_seconds)
    streamed = estimate(replace(use, weights="streamed"), replace(H100, host=1e9), Around(), seconds=4, words=200)
    assert streamed.floor == pytest.approx(streamed.host_seconds + streamed.decode_seconds)
    assert streamed.host_seconds > 4 * 8  # four passes over 9 GB
    eight_bits = replace(on_h100, use=replace(use, fp8=True))
    linear = on_h100.chunk.products / H100.products
    assert on_h100.floor - eight_bits.floor == pytest.approx(linear * (1 - 790 / 1300), rel=0.1)


def test_layers_stream_where_they_do_not_fit() -> None:
    use = Use.of(PRESETS["24b"])
    assert (place(use, H100.capacity), place(use, RTX4090.capacity), place(use, 0)) == (
        "resident",
        "streamed",
        "resident",
    )


def test_operations_for_people() -> None:
    assert [amount(x) for x in (2.5e18, 4.84e16, 67.6e12, 9.79e9, 1e3)] == ["2,500 PF", "48.4 PF", "67.6 TF", "9.79 GF", "0.001 MF"]  # fmt: skip
