"""Where a MODEL's weights are to lie: what "auto" comes to, and that the memory plan is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magi_core.cost.memory import Use
from magi_core.presets import PRESETS
from nodes.model import MagiModel, Weights, placed

GB = 1_000_000_000


@pytest.mark.parametrize(
    ("preset", "changes", "device_bytes", "place"),
    [
        ("4.5b", {}, 24 * GB, "auto"),
        ("24b", {}, 24 * GB, "streamed"),
        ("4.5b", {"fp8": True}, 24 * GB, "resident"),
        ("4.5b-distill-fp8", {}, 24 * GB, "resident"),
        ("24b-distill-fp8", {}, 24 * GB, "streamed"),
        ("24b", {"gpu": False}, 24 * GB, "auto"),
    ],
)
def test_auto_is_what_fits(preset: str, changes: dict[str, bool], device_bytes: int, place: Weights) -> None:
    assert placed("auto", replace(Use.of(PRESETS[preset]), **changes), device_bytes) == place


@pytest.mark.parametrize("asked", ["resident", "streamed"])
def test_what_was_asked_for_stays(asked: Weights) -> None:
    assert placed(asked, Use.of(PRESETS["24b"]), GB) == asked


def test_the_plan_is_told_where_the_weights_lie(model: MagiModel) -> None:
    own = model.config.sampling
    assert model.use(64, 64, own, gpu=True).weights == "resident"
    part = MagiModel(model.dit, model.files, "auto", fp8=True)
    assert part.use(64, 96, own, gpu=True).weights == "streamed", "what is brought as it is used needs no more"
    assert part.use(64, 96, own, gpu=False).weights == "resident"
    use = part.use(64, 96, own, gpu=True)
    assert (use.height, use.width, use.fp8, use.config.dit) == (64, 96, True, model.dit.config)
