"""The recorded JSON documents (text cleaning, schedules): completed from their inputs, and compared leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from magi_core.config import Sampling
from magi_core.denoise.schedule import chunk_count, step_intervals, timesteps, window_stage
from magi_core.denoise.trace import trace
from magi_core.golden import Golden
from magi_core.text.assembly import NULL_LENGTH
from magi_core.text.cleaning import clean_caption, clean_once

TIME_TOLERANCE = 2e-6
"""Timesteps are float32; everything else in the documents is exact."""


def text_cleaning(golden: Golden, recorded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every prompt, cleaned once and twice."""
    return [
        entry | {"clean_once": clean_once(entry["input"]), "clean_twice": clean_caption(entry["input"])}
        for entry in recorded
    ]


def schedules(golden: Golden, recorded: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Timesteps, intervals, stage tables and step-by-step traces of every recorded setting."""
    complete = {"init_t": _times, "init_interval": _intervals, "sequences": _sequence, "traces": _trace}
    return {
        name: [entry | complete[name](entry) for entry in entries] if name in complete else entries
        for name, entries in recorded.items()
    }


def _times(entry: dict[str, Any]) -> dict[str, Any]:
    curve = {"tSchedulerFunc": "sd3", "shift": 3.0} | entry["t_schedule_config"]
    times = timesteps(entry["num_steps"], entry["shortcut_mode"], curve["tSchedulerFunc"], curve["shift"])
    return {"t": list(times)}


def _intervals(entry: dict[str, Any]) -> dict[str, Any]:
    return {"interval": [float(i) for i in step_intervals(entry["num_steps"], entry["shortcut_mode"])]}


def _sequence(entry: dict[str, Any]) -> dict[str, Any]:
    chunks, window, offset = entry["chunk_num"], entry["window_size"], entry["chunk_offset"]
    stages = [window_stage(number, chunks, window, offset) for number in range(offset, chunks + window - 1)]
    return {
        "clip_start": [stage.chunk_start for stage in stages],
        "clip_end": [stage.chunk_end for stage in stages],
        "t_start": [stage.t_start for stage in stages],
        "t_end": [stage.t_end for stage in stages],
    }


def _trace(entry: dict[str, Any]) -> dict[str, Any]:
    names = ("window_size", "num_steps", "shortcut_mode", "clean_chunk_kvrange", "noise2clean_kvrange", "cfg_number")
    settings = {name: entry[name] for name in names}
    sampling = Sampling(**settings | {"noise2clean_kvrange": tuple(settings["noise2clean_kvrange"])})
    width, prefix, frames = sampling.chunk_width, entry["prefix_latent_frames"], entry["num_frames"] // 4
    events = trace(sampling, frames, prefix, TRACE_TEXT_LENGTH, NULL_LENGTH)
    chunks = chunk_count(frames, prefix, width)
    steps = sum(event["event"] == "forward" for event in events)
    totals = {"chunk_num": chunks, "latent_frames_total": chunks * width, "total_forward_steps": steps}
    return totals | {"events": events}


TRACE_TEXT_LENGTH = 37
"""Real tokens of the caption with which the traces were recorded."""

DOCUMENTS: Mapping[str, Callable[[Golden, Any], Any]] = {
    "text_cleaning.json": text_cleaning,
    "schedules.json": schedules,
}


def differences(computed: Any, recorded: Any) -> dict[str, float]:
    """Part of the document -> its largest difference: 0 for equal, infinite where something other than a number differs.

    Only what is recorded is compared; a document of one list is one part named "entries".
    """
    if isinstance(recorded, dict):
        return {name: _difference(computed.get(name), value) for name, value in recorded.items()}
    return {"entries": _difference(computed, recorded)}


def _difference(computed: Any, recorded: Any) -> float:
    if isinstance(recorded, dict) and isinstance(computed, dict):
        return max((_difference(computed.get(name), value) for name, value in recorded.items()), default=0.0)
    if isinstance(recorded, list) and isinstance(computed, list):
        if len(computed) != len(recorded):
            return float("inf")
        return max((_difference(a, b) for a, b in zip(computed, recorded, strict=True)), default=0.0)
    if isinstance(recorded, float) and isinstance(computed, int | float) and not isinstance(computed, bool):
        return abs(computed - recorded)
    return 0.0 if computed == recorded else float("inf")
