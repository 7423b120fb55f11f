"""What several devices gain: balance, bytes and predicted times, for the released models; counted and simulated, on any machine.

    python benchmarks/parallel.py

Writes benchmarks/results/parallel.json, the table in docs/parallel.md and the plot docs/images/parallel.svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import write_record

from magi_core.config import Sampling
from magi_core.cost.machines import H100, RTX4090, Machine
from magi_core.cost.memory import Use
from magi_core.cost.work import Work
from magi_core.denoise.schedule import Schedule
from magi_core.files import atomic_write
from magi_core.kernels import AttnRange
from magi_core.parallel.decoding import saved
from magi_core.parallel.fit import device_plan
from magi_core.parallel.predict import (
    Pass,
    choose,
    line_flow,
    needed_bytes,
    step_time,
    swapped_bytes,
    window_pass,
)
from magi_core.parallel.shard import lay_out
from magi_core.parallel.worker import Strategy
from magi_core.presets import PRESETS
from magi_core.vae import Tiling, VAEConfig

ROOT = Path(__file__).parents[1]
MODELS = ("4.5b", "24b", "4.5b-distill", "24b-distill")
SIZES = {"480x832": 9360, "720x1280": 21600}
"""Tokens of a chunk."""
RANKS = (2, 4, 8, 16)
LINES = (2, 4, 8)
"""Devices one behind the other."""
MACHINES = {"H100": H100, "4090": RTX4090}
BEGIN, END = "<!-- figures: python benchmarks/parallel.py -->", "<!-- end of figures -->"
BEGIN_LINES, END_LINES = "<!-- pipeline: python benchmarks/parallel.py -->", "<!-- end of pipeline -->"
BEGIN_DECODING, END_DECODING = "<!-- decoding: python benchmarks/parallel.py -->", "<!-- end of decoding -->"
COLOURS = ("#1f4e9c", "#c8452c", "#2a8c4a", "#8a4fb0")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    rows = [row(model, size, ranks) for model in MODELS for size in SIZES for ranks in RANKS]
    lines = [line(model, devices) for model in MODELS for devices in LINES]
    decoded = [decoding(model, machine) for model in MODELS for machine in MACHINES]
    record = {"rows": rows, "pipeline": lines, "decoding": decoded}
    write_record(ROOT / "benchmarks" / "results" / "parallel.json", record)
    page = ROOT / "docs" / "parallel.md"
    text = page.read_text(encoding="utf-8")
    text = filled(filled(text, BEGIN, END, table(rows)), BEGIN_LINES, END_LINES, line_table(lines))
    text = filled(text, BEGIN_DECODING, END_DECODING, decoding_table(decoded))
    with atomic_write(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_write(ROOT / "docs" / "images" / "parallel.svg") as temporary:
        temporary.write_text(plot(rows), encoding="utf-8")


def filled(text: str, begin: str, end: str, inner: str) -> str:
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n\n{inner}\n\n{end}{after}"


def line(model: str, devices: int) -> dict[str, Any]:
    """Layers one behind the other at 720x1280."""
    preset, strategy, tokens = PRESETS[model], Strategy(pipeline=devices), SIZES["720x1280"]
    alone = step_time(preset.dit, preset.sampling, tokens, 1, RTX4090, Strategy())
    found = line_flow(preset.dit, preset.sampling, tokens, devices, RTX4090, strategy)
    return {
        "model": model,
        "devices": devices,
        "idle_percent": round(100 * found.idle, 1),
        "times_faster": round(alone.end / found.seconds, 2),
        "device_gb": {
            size: round(device_plan(replace(Use.of(preset), height=h, width=w), strategy).total / 1e9, 1)
            for size, (h, w) in ((size, map(int, size.split("x"))) for size in SIZES)
        },
    }


def line_table(lines: Sequence[Mapping[str, Any]]) -> str:
    head = "| model | devices | idle | times faster | GB a device, 480x832 | 720x1280 |\n" + "| --- " * 6 + "|"
    return "\n".join(
        [head]
        + [
            f"| {one['model']} | {one['devices']} | {one['idle_percent']:.1f} % | {one['times_faster']:.2f} | "
            + " | ".join(f"{one['device_gb'][size]:.1f}" for size in SIZES)
            + " |"
            for one in lines
        ]
    )


def decoding(model: str, machine: str) -> dict[str, Any]:
    """What is saved where all devices decode, at 720x1280, with the released VAE in bfloat16."""
    use = replace(Use.of(PRESETS[model]), height=720, width=1280)
    tiling = Tiling(single_frame_rule=False)
    found: dict[str, Any] = {"model": model, "machine": machine}
    for ranks in RANKS:
        way = choose(use.config.dit, use.sampling, SIZES["720x1280"], ranks, MACHINES[machine])
        share = saved(use, ranks, way, tiling, VAEConfig(), MACHINES[machine])
        found[str(ranks)] = round(100 * share, 1) + 0.0  # not -0.0
    return found


def decoding_table(decoded: Sequence[Mapping[str, Any]]) -> str:
    head = "| model | machine | " + " | ".join(f"{ranks} devices" for ranks in RANKS) + " |\n" + "| --- " * 6 + "|"
    return "\n".join(
        [head]
        + [
            f"| {one['model']} | {one['machine']} | " + " | ".join(f"{one[str(ranks)]:.1f} %" for ranks in RANKS) + " |"
            for one in decoded
        ]
    )


def row(model: str, size: str, ranks: int) -> dict[str, Any]:
    config, sampling, tokens = PRESETS[model].dit, PRESETS[model].sampling, SIZES[size]
    step = window_pass(sampling, tokens)
    ring = (ranks - 1) / ranks * step.chunks * tokens * Work.of(config).key_bytes
    shared = config.num_query_groups % ranks == 0
    found: dict[str, Any] = {
        "model": model,
        "size": size,
        "devices": ranks,
        "balance": round(max(balance(step, ranks) for step in passes(sampling, tokens)), 3),
        "keys_mb": round(needed_bytes(config, step, ranks) / 1e6, 1),
        "ring_mb": round(ring / 1e6, 1),
        "heads_mb": round(swapped_bytes(config, step, ranks) / 1e6, 1) if shared else None,
    }
    for name, machine in MACHINES.items():
        found[name] = predicted(model, tokens, ranks, machine)
    return found


def predicted(model: str, tokens: int, ranks: int, machine: Machine) -> dict[str, Any]:
    config, sampling = PRESETS[model].dit, PRESETS[model].sampling
    way = choose(config, sampling, tokens, ranks, machine)
    alone = step_time(config, sampling, tokens, 1, machine, Strategy())
    shared = step_time(config, sampling, tokens, ranks, machine, way)
    return {
        "passes": way.passes,
        "exchange": way.exchange,
        "portions": way.stages,
        "times_faster": round(alone.end / shared.end, 2),
        "exposed_percent": round(100 * shared.exposed / shared.end, 1),
    }


def passes(sampling: Sampling, tokens: int) -> Iterator[Pass]:
    """Every kind of window of a video of eight chunks."""
    kinds = {(s.kv_chunks, s.chunks.start - s.extra, s.extra) for s in Schedule.of(sampling).run(0, 8)}
    for seen, first, extra in sorted(kinds):
        oldest = min(first, *(start for start, _ in seen))
        ranges = tuple(
            AttnRange(i * tokens, (i + 1) * tokens, (a - oldest) * tokens, (b - oldest) * tokens)
            for i, (a, b) in enumerate(seen)
        )
        yield Pass(ranges, len(seen), tokens, (first - oldest) * tokens, int(extra))


def balance(step: Pass, ranks: int) -> float:
    """Largest over mean attention area."""
    layout = lay_out(step.ranges, step.chunks, step.tokens, ranks, step.past, step.write_chunks)
    areas = []
    for cells in layout.bins:
        spans = [(layout.cell(cell), step.ranges[layout.chunk_of(cell)]) for cell in cells]
        areas.append(sum((end - start) * (r.k_end - r.k_start) for (start, end), r in spans))
    return max(areas) / (sum(areas) / ranks)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "| model | size | devices | largest / mean area | keys MB | ring MB | heads MB "
        "| H100: way, faster, exposed | 4090: way, faster, exposed |\n" + "| --- " * 9 + "|"
    )
    lines = [
        f"| {r['model']} | {r['size']} | {r['devices']} | {r['balance']:.3f} | {r['keys_mb']:.0f} | {r['ring_mb']:.0f} "
        f"| {'-' if r['heads_mb'] is None else format(r['heads_mb'], '.0f')} | {cell(r['H100'])} | {cell(r['4090'])} |"
        for r in rows
    ]
    return "\n".join([head, *lines])


def cell(found: Mapping[str, Any]) -> str:
    way = f"{found['passes']} x " if found["passes"] > 1 else ""
    portions = f" in {found['portions']}" if found["portions"] > 1 else ""
    return f"{way}{found['exchange']}{portions}, {found['times_faster']:.2f}, {found['exposed_percent']:.1f} %"


def plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Times faster over devices at 720x1280, one panel a machine."""
    width, height, edge = 340, 300, 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width + 160}" height="{height + 20}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for panel, (name, machine) in enumerate(MACHINES.items()):
        left = panel * width

        def place(devices: float, faster: float, left: int = left) -> str:
            x = left + edge + (width - edge - 20) * devices / 16
            return f"{x:.1f},{height - 40 - (height - 80) * faster / 16:.1f}"

        parts.append(f'<text x="{left + edge}" y="24">{machine.name}, 720x1280: times faster</text>')
        for value in (0, 4, 8, 12, 16):
            start, end = place(0, value), place(16, value)
            parts.append(f'<polyline points="{start} {end}" stroke="#dddddd" fill="none"/>')
            x, y = start.split(",")
            parts.append(f'<text x="{float(x) - 22:.1f}" y="{float(y) + 4:.1f}">{value}</text>')
            x, y = place(value, 0).split(",")
            parts.append(f'<text x="{float(x) - 6:.1f}" y="{float(y) + 18:.1f}">{value}</text>')
        parts.append(
            f'<polyline points="{place(0, 0)} {place(16, 16)}" stroke="#999999" stroke-dasharray="4" fill="none"/>'
        )
        for model, colour in zip(MODELS, COLOURS, strict=True):
            points = [(1, 1.0)] + [
                (r["devices"], r[name]["times_faster"]) for r in rows if r["model"] == model and r["size"] == "720x1280"
            ]
            parts.append(
                f'<polyline points="{" ".join(place(*p) for p in points)}" stroke="{colour}" stroke-width="2" fill="none"/>'
            )
    for i, (model, colour) in enumerate(zip(MODELS, COLOURS, strict=True)):
        parts.append(f'<text x="{2 * width + 20}" y="{60 + 20 * i}" fill="{colour}">{model}</text>')
    parts.append(f'<text x="{2 * width + 20}" y="{60 + 20 * len(MODELS)}" fill="#999999">perfect</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
