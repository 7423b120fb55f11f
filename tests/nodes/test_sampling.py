"""Settings of a node's inputs: what goes together, sigmas as times."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from magi_core.errors import MagiError
from magi_core.presets import PRESETS
from nodes import sampling

NOTHING = sampling.Asked()


def test_empty_widgets_leave_the_models_own_settings() -> None:
    own = PRESETS["nano"].sampling
    assert sampling.sampling_with(own, NOTHING) == own
    changed = sampling.sampling_with(own, sampling.Asked(12, 2, 3.0, 2.0, "3, 2", anchor="on"))
    assert changed == own.changed(steps=12, window=2, guidance=3.0, history_guidance=2.0, kv_ranges=(3, 2), anchor=True)


@pytest.mark.parametrize("name", [field.name for field in fields(sampling.Asked)])
def test_a_session_keeps_every_setting(name: str) -> None:
    NOTHING.kept()
    asked = {"kv_ranges": "2", "sigmas": torch.tensor([1.0, 0.0]), "anchor": "off"}.get(name, 4)
    with pytest.raises(
        MagiError, match=rf"{name} is .*, but a session keeps the settings .* leave {name} as a new node has it"
    ):
        replace(NOTHING, **{name: asked}).kept()


def test_sigmas_are_times_from_the_other_end() -> None:
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    own = PRESETS["nano"].sampling
    changed = sampling.sampling_with(own, replace(NOTHING, sigmas=sigmas))
    assert changed.times == (0.0, 0.25, 0.5, 0.75, 1.0) and changed.num_steps == 4
    with pytest.raises(MagiError, match="steps is 8, but the connected sigmas are for 4"):
        sampling.sampling_with(own, replace(NOTHING, steps=8, sigmas=sigmas))


@pytest.mark.parametrize(
    "levels", [[], [1.0], [14.6, 3.0, 0.0], [1.0, 0.5], [1.0, 0.5, 0.5, 0.0], [1.0, float("nan"), 0.0]]
)
def test_sigmas_of_other_models(levels: list[float]) -> None:
    with pytest.raises(MagiError, match=r"sigmas are .* fall from 1 to 0"):
        sampling.times_of(torch.tensor(levels))


def test_steps_window_and_ranges_go_together() -> None:
    own = PRESETS["nano"].sampling
    sampling.check_settings(None, 3, "")
    sampling.check_settings(0, 0, "2,2")
    sampling.check_settings(12, 3, "2,2,2")
    with pytest.raises(MagiError, match=r"steps is 7 and window is 3; .* try 6"):
        sampling.check_settings(7, 3, "")
    with pytest.raises(MagiError, match="kv_ranges has 3 entries and steps is 8"):
        sampling.check_settings(8, 2, "3,2,1")
    with pytest.raises(MagiError, match="steps is 8 and window is 3"):
        sampling.sampling_with(own, replace(NOTHING, window=3))
    with pytest.raises(MagiError, match="window is 17; it must be a whole number from 0 to 16"):
        sampling.check_settings(None, 17, None)


def test_an_anchor_by_another_word() -> None:
    with pytest.raises(MagiError, match="anchor is 'yes'; it must be one of model's own, on, off"):
        sampling.sampling_with(PRESETS["nano"].sampling, replace(NOTHING, anchor="yes"))


@pytest.mark.parametrize("text", ["5;4", "a", "0", "-1", "1.5", "1,,2", "\u0661", "99999999999"])
def test_ranges_that_cannot_be_read(text: str) -> None:
    with pytest.raises(MagiError, match="kv_ranges"):
        sampling.parse_ranges(text)
