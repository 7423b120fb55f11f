"""Settings a person changes: what goes together, and times given in place of the model's curve."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magi_core.config import Sampling
from magi_core.denoise.schedule import Schedule
from magi_core.errors import MagiError
from magi_core.presets import PRESETS

OWN = PRESETS["nano"].sampling
CURVE = (0.0, 0.1, 0.3, 0.6, 1.0)


def test_nothing_asked_for_changes_nothing() -> None:
    assert OWN.changed() == OWN


def test_guidance_is_changed_while_the_noise_is_strong() -> None:
    changed = OWN.changed(steps=12, window=2, guidance=3.0, kv_ranges=(3, 2))
    assert (changed.num_steps, changed.window_size, changed.noise2clean_kvrange) == (12, 2, (3, 2))
    assert changed.text_scales == (3.0, 3.0, 3.0, 1.0, 1.0)
    assert OWN.changed(history_guidance=2.0) == replace(OWN, prev_chunk_scales=(2.0, 2.0, 2.0, 1.0, 1.0))


def test_what_does_not_go_together() -> None:
    with pytest.raises(MagiError, match="distilled"):
        Sampling(cfg_number=1).changed(guidance=3.0)
    assert OWN.changed(anchor=True) == replace(OWN, anchor=True) != OWN == OWN.changed(anchor=False)
    with pytest.raises(MagiError, match="anchor is 1; it must be true or false"):
        OWN.changed(anchor=1)
    with pytest.raises(MagiError, match=r"history_guidance is 3\.0; a distilled"):
        Sampling(cfg_number=1).changed(history_guidance=3.0)
    with pytest.raises(MagiError, match="history_guidance is nan; it must be a finite number"):
        OWN.changed(history_guidance=float("nan"))
    with pytest.raises(MagiError, match="num_steps"):
        OWN.changed(steps=7)


def test_times_take_the_place_of_the_curve() -> None:
    assert Schedule.of(OWN.changed(times=CURVE)).times == CURVE
    own = Schedule.of(Sampling(num_steps=8, noise2clean_kvrange=(2, 2))).times
    clipped = (*own[:-1], 1.0)  # the model's own last time is a rounding above 1
    assert Schedule.of(OWN.changed(times=clipped)).times == clipped


@pytest.mark.parametrize("times", [(0.0, 0.5, 0.5, 0.6, 1.0), (0.1, 0.2, 0.3, 0.4, 1.0), (0.0, 0.1, 0.2, 0.3, 0.9)])
def test_times_that_do_not_rise_from_0_to_1(times: tuple[float, ...]) -> None:
    with pytest.raises(MagiError, match="rise from 0"):
        OWN.changed(times=times)


def test_times_for_another_number_of_steps_or_a_distilled_model() -> None:
    with pytest.raises(MagiError, match="5 times for 8 steps"):
        replace(OWN, times=CURVE)
    with pytest.raises(MagiError, match="distilled"):
        Sampling(cfg_number=1).changed(times=CURVE)
    with pytest.raises(MagiError, match="not a multiple of window_size"):
        OWN.changed(times=(0.0, 0.5, 1.0))


def test_the_steps_that_are_proposed_would_do() -> None:
    """Of the window and of the number of ranges at once."""
    for changes, near in (({"window": 3}, 12), ({"steps": 30, "window": 3}, 24), ({"steps": 6, "window": 2}, 4)):
        with pytest.raises(MagiError, match=f"use {near} steps"):
            OWN.changed(**changes)
        OWN.changed(**{**changes, "steps": near})
