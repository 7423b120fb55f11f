"""Physics-IQ's protocol on the worlds: truth scores full marks, baselines do not, and a model is asked what it should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from magi_core.errors import MagiError
from magi_core.evaluation.physics_worlds import (
    build_events,
    forecast,
    from_last_frame,
    kv_range,
    score_baselines,
    score_events,
)
from magi_core.presets import PRESETS
from magi_core.worlds.clips import render, simulate

pytest.importorskip("cv2", reason="OpenCV is not installed; pip install 'comfyui-magi[evaluation]'")


def test_events_stand_still_and_then_move() -> None:
    events = list(build_events("full", 6))
    assert [event.motion for event in events] == ["slide", "bounce", "fall"] * 2
    for event in events:
        path = simulate(event.clip)
        assert not np.ptp(path[:48], axis=0).any() and np.ptp(path[48:72], axis=0).max() > 2
        assert len(event.request.prompts) == 5 and event.request.prefix.shape == (72, 64, 64, 3)
        first, second = event.takes
        assert first.shape == (192, 64, 64, 3) and (first != second).mean() > 0.3
        assert np.abs(first[:, 20:40].astype(int) - render(event.clip)[:, 20:40]).max() < 15
    again = next(build_events("full", 1))
    assert (again.takes[0] == events[0].takes[0]).all() and again.request.prompts == events[0].request.prompts
    with pytest.raises(MagiError, match="flat"):
        next(build_events("flat", 1))


def test_the_truth_scores_full_marks_and_baselines_do_not() -> None:
    truths = {event.request.seed: render(event.clip)[72:] for event in build_events("narrow", 3)}
    scores = score_events(lambda requests: [truths[request.seed] for request in requests], "narrow", 3)
    assert scores["all"].verified > 95 and scores["all"].original > 95 and scores["bounce"].views == 1
    baselines = score_baselines("narrow", 3)
    assert baselines["the other take"]["all"].verified > 99
    for name in ("last frame frozen", "constant velocity"):
        assert baselines[name]["bounce"].verified < 70 < scores["bounce"].verified
    still = forecast(next(build_events("narrow", 1)), "last frame frozen")
    assert still.shape == (120, 64, 64, 3) and (still == still[0]).all()


def test_image_to_video_and_kv_ranges() -> None:
    event = next(build_events("narrow", 1))
    asked = []
    from_last_frame(lambda requests: asked.extend(requests) or [])([event.request])
    assert asked[0].prefix is None and (asked[0].image == event.request.prefix[-1]).all()
    sampling = PRESETS["nano"].sampling
    assert kv_range(sampling, 3) == replace(sampling, noise2clean_kvrange=(3, 3, 3, 3))
    assert kv_range(replace(sampling, anchor=True), 3) == kv_range(sampling, 3), "range 1 sees nothing but itself"
