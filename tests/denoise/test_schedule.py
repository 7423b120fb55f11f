"""The window schedule against recorded tables and runs, and what the KV ring must keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_core.config import Sampling
from magi_core.denoise.schedule import Schedule, step_intervals, timesteps, window_stage
from magi_core.denoise.trace import trace
from magi_core.errors import MagiError
from magi_core.golden import Golden


def test_times_and_intervals_are_the_recorded_ones(golden: Golden) -> None:
    recorded = golden.json("schedules.json")
    for entry in recorded["init_t"]:
        curve = entry["t_schedule_config"]
        args = curve.get("tSchedulerFunc", "sd3"), curve.get("shift", 3.0)
        assert list(timesteps(entry["num_steps"], entry["shortcut_mode"], *args)) == entry["t"]
    for entry in recorded["init_interval"]:
        assert list(step_intervals(entry["num_steps"], entry["shortcut_mode"])) == entry["interval"]


def test_stages_are_the_recorded_ones(golden: Golden) -> None:
    for entry in golden.json("schedules.json")["sequences"]:
        chunks, window, offset = entry["chunk_num"], entry["window_size"], entry["chunk_offset"]
        stages = [window_stage(i, chunks, window, offset) for i in range(offset, chunks + window - 1)]
        columns = [list(column) for column in zip(*stages, strict=True)]
        assert columns == [entry[name] for name in ("clip_start", "clip_end", "t_start", "t_end")]


def test_whole_runs_are_the_recorded_ones(golden: Golden) -> None:
    for run in golden.json("schedules.json")["traces"]:
        names = ("window_size", "num_steps", "shortcut_mode", "clean_chunk_kvrange", "cfg_number")
        sampling = Sampling(
            **{name: run[name] for name in names}, noise2clean_kvrange=tuple(run["noise2clean_kvrange"])
        )
        events = trace(sampling, run["num_frames"] // 4, run["prefix_latent_frames"], 37, 50)
        assert events == run["events"]


def test_an_unknown_curve_is_refused() -> None:
    with pytest.raises(MagiError, match="'cosine'; allowed: sd3"):
        timesteps(8, "8,16,16", "cosine")


samplings = st.builds(
    lambda window, kv, clean: replace(
        Sampling(), num_steps=8, window_size=window, noise2clean_kvrange=kv, clean_chunk_kvrange=clean
    ),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([0, 1, 2, 4]).flatmap(lambda n: st.tuples(*[st.integers(1, 6)] * n)),
    st.sampled_from([-1, 1, 2, 3]),
)


@settings(max_examples=60, deadline=None)
@given(samplings, st.integers(0, 5), st.integers(1, 9))
def test_first_read_is_the_oldest_chunk_of_all_that_follows(sampling: Sampling, offset: int, chunks: int) -> None:
    schedule = Schedule.of(sampling)
    end = offset + chunks
    start = offset * schedule.stage_steps
    steps = list(schedule.run(offset, end + 20))  # long enough for the far end to read nothing older
    for n in range(len(list(schedule.run(offset, end)))):
        oldest = min(first for step in steps[n:] for first, _ in step.kv_chunks)
        assert schedule.first_read(offset, start + n) == oldest
