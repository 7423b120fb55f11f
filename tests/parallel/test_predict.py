"""Predicted times: the timeline by hand, its order on real processes, and what is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magi_core.config import Sampling
from magi_core.cost.machines import H100, RTX4090
from magi_core.cost.memory import Use
from magi_core.cost.work import Work
from magi_core.errors import MagiError
from magi_core.parallel.fit import device_plan, place_of
from magi_core.parallel.launch import Spawned
from magi_core.parallel.predict import (
    best_stages,
    choose,
    needed_bytes,
    step_time,
    swapped_bytes,
    timeline,
    window_pass,
)
from magi_core.parallel.wavefront import flow
from magi_core.parallel.worker import Strategy
from magi_core.presets import PRESETS

BASE = PRESETS["4.5b"]
TOKENS = 12150
"""720 x 720."""


def test_the_timeline_waits_for_what_has_not_arrived() -> None:
    assert timeline(3, []) == (3, 0)
    assert timeline(3, [(2, 1), (2, 1)]) == (5, 0)
    assert timeline(1, [(2, 1), (2, 1)]) == (5, 2)
    assert timeline(0, [(4, 2)]) == (6, 4)


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
@pytest.mark.parametrize("model", ["4.5b", "24b"])
def test_fewer_bytes_than_a_ring_and_where_theory_says_so_than_ulysses(model: str, ranks: int) -> None:
    config = PRESETS[model].dit
    step = window_pass(Sampling(), TOKENS)
    ring = (ranks - 1) / ranks * step.chunks * TOKENS * Work.of(config).key_bytes
    assert needed_bytes(config, step, ranks) < (0.88 if ranks <= 4 else 1) * ring
    if ranks <= 4:
        assert needed_bytes(config, step, ranks) < swapped_bytes(config, step, ranks)
    if ranks >= 8:
        assert swapped_bytes(PRESETS["4.5b"].dit, step, ranks) < needed_bytes(PRESETS["4.5b"].dit, step, ranks)


def test_portions_pay_where_the_link_is_slow() -> None:
    step = window_pass(Sampling(), TOKENS)
    fast, slow = (best_stages(BASE.dit, step, 8, replace(RTX4090, link=rate)) for rate in (1e12, 4e9))
    assert fast == 1 < slow


def test_the_choice_is_the_fastest_and_turns_to_passes_where_links_are_slow() -> None:
    assert choose(BASE.dit, BASE.sampling, TOKENS, 2, H100).passes == 1
    crawling = replace(RTX4090, link=1e8)
    assert choose(BASE.dit, BASE.sampling, TOKENS, 2, crawling).passes == 2
    distilled = PRESETS["4.5b-distill"]
    assert choose(distilled.dit, distilled.sampling, TOKENS, 4, crawling).passes == 1
    for machine in (H100, RTX4090):
        alone = step_time(BASE.dit, BASE.sampling, TOKENS, 1, machine, Strategy()).end
        for ranks in (2, 4, 8):
            best = choose(BASE.dit, BASE.sampling, TOKENS, ranks, machine)
            assert alone / ranks <= step_time(BASE.dit, BASE.sampling, TOKENS, ranks, machine, best).end < alone


def test_a_line_does_not_run_dry_while_there_are_as_many_units_as_devices() -> None:
    """By hand: units of one second. With fewer units than devices a chunk's velocity is what is waited for."""
    guided = [(slot, 1.0) for slot in range(4) for _ in range(3)]
    for ranks in (2, 4, 8, 10):
        assert flow(guided, ranks) == (12, 0)
    assert flow(guided, 11).idle > 0
    distilled = [(slot, 1.0) for slot in range(4)]
    assert flow(distilled, 4) == (4, 0) and flow(distilled, 8) == (8, 0.5)
    assert flow([(0, 1.0)], 4) == (4, 0.75)
    assert flow(distilled, 2, hop=0.5).idle == 0, "transfers are hidden too"
    assert flow([(0, 1.0), (0, 3.0)], 2).seconds >= 4


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_layers_one_behind_the_other_only_where_nothing_else_fits(ranks: int) -> None:
    big = PRESETS["24b"]
    use = replace(Use.of(big), height=480, width=832)
    needed = [device_plan(use, Strategy(pipeline=count)).total for count in (1, 2, 4, 8)]
    assert needed == sorted(needed, reverse=True) and needed[0] > 50e9 > 24e9 > needed[2]
    asked = [
        choose(big.dit, big.sampling, TOKENS, ranks, RTX4090, fits=lambda s, room=room: device_plan(use, s).fits(room))
        for room in (80e9, 40e9, 24e9, 1e9)
    ]
    assert [strategy.pipeline for strategy in asked] == [1, {2: 2, 4: 4, 8: 4}[ranks], min(ranks, 4), ranks]
    assert choose(big.dit, big.sampling, TOKENS, ranks, H100, "pipeline") == Strategy(pipeline=ranks)


def test_weights_are_dealt_out_before_they_are_streamed_and_what_fits_nowhere_says_what_is_needed() -> None:
    use = replace(Use.of(PRESETS["24b"]), height=480, width=832)
    assert place_of(use, 2, "auto", "auto", int(80e9)) == "resident"
    assert place_of(use, 4, "auto", "auto", int(24e9)) == place_of(use, 4, "pipeline", "auto", int(24e9)) == "resident"
    assert place_of(use, 4, "keys", "auto", int(24e9)) == place_of(use, 2, "auto", "auto", int(24e9)) == "streamed"
    assert place_of(use, 4, "auto", "streamed", int(80e9)) == "streamed"
    assert place_of(use, 4, "auto", "resident", 0) == "resident", "nobody knows how much they have"
    with pytest.raises(
        MagiError, match=r"each of 4 devices needs .*, the smallest has 24\.0 GB; use more .* or share by pipeline"
    ):
        place_of(use, 4, "keys", "resident", int(24e9))
    with pytest.raises(MagiError, match="each of 2 devices needs"):
        place_of(use, 2, "auto", "auto", int(4e9))


def test_real_exchanges_come_in_the_predicted_order(two: Spawned) -> None:
    """With a link and a computation that are slow on purpose: one portion, several, and all hidden take longer in the order predicted."""
    cases = ((1, 0.06, 0.02), (3, 0.06, 0.02), (3, 0.004, 0.015), (1, 0.004, 0.004))
    answers = two.call("run", "throttled", cases)
    for predicted, measured in answers:
        order = sorted(range(len(cases)), key=predicted.__getitem__)
        assert [measured[i] for i in order] == sorted(measured)
        assert all(m > 0.9 * p for p, m in zip(predicted, measured, strict=True))
