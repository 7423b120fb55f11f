"""Whether a way of sharing a model fits the devices: the memory plan of one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from magi_core.cost.memory import MemoryPlan, Use, fullest_step, plan_memory, size_text, tokens_per_chunk, weight_bytes
from magi_core.errors import MagiError
from magi_core.memory.streaming import Place
from magi_core.parallel.predict import Way
from magi_core.parallel.units import share_of
from magi_core.parallel.worker import Strategy


def device_plan(use: Use, strategy: Strategy) -> MemoryPlan:
    """What a device needs at most. Where layers are shared otherwise than in a line, every device has all weights and what is remembered."""
    plan = plan_memory(use)
    count = strategy.pipeline
    if count == 1 or use.weights == "streamed":
        return plan
    dit, sampling = use.config.dit, use.sampling
    outside, layers = weight_bytes(dit, use.fp8)
    shares = [share_of(dit.num_layers, rank, count) for rank in range(count)]
    most = max(len(share) for share in shares)
    step, _ = fullest_step(sampling, use.config.num_frames)
    passes = 2 if sampling.cfg_number == 3 else 1  # those in which chunks see each other
    tokens = tokens_per_chunk(use.config, sampling, use.height, use.width)
    row = 2 * dit.num_query_groups * dit.kv_channels * dit.params_dtype.itemsize
    drafts = passes * (len(step.kv_chunks) - 1) * tokens * row * most
    return replace(
        plan,
        weights=outside + max(sum(layers[i] for i in share) for share in shares),
        kv_cache=-(-plan.kv_cache * most // dit.num_layers) + drafts,
    )


def place_of(use: Use, ranks: int, way: Way, wanted: Place | Literal["auto"], room: int) -> Place:
    """Where the workers' weights lie so that one of the strategies of ``way`` fits ``ranks`` devices of ``room`` bytes, 0 if that is not
    known; "auto" is resident where that fits, and on a CPU. Raises MagiError, which says what is needed, where nothing does.
    """
    places: tuple[Place, ...] = ("resident", "streamed") if wanted == "auto" else (wanted,)
    if not use.gpu:
        places = places[:1]
    if not room:
        return places[0]
    plans = [_leanest(replace(use, weights=place), ranks, way) for place in places]
    for plan in plans:
        if plan.fits(room):
            return plan.use.weights
    least = min(plans, key=lambda plan: plan.total)
    raise MagiError(
        f"each of {ranks} devices needs {size_text(least.total)} (weights {size_text(least.weights + least.slots)}, keys and values "
        f"{size_text(least.kv_cache)}, activations {size_text(least.activations)}), the smallest has {size_text(room)}; "
        f"use more devices, a smaller size or window, or fp8{'' if way in ('auto', 'pipeline') else ', or share by pipeline'}"
    )


def _leanest(use: Use, ranks: int, way: Way) -> MemoryPlan:
    """The plan of a device in the strategy of ``way`` that needs least."""
    lines = (
        [ranks] if way == "pipeline" else range(2, min(ranks, use.config.dit.num_layers) + 1) if way == "auto" else []
    )
    strategies = [Strategy(pipeline=count) for count in lines if ranks % count == 0]
    strategies += [Strategy()] if way != "pipeline" else []
    return min((device_plan(use, strategy) for strategy in strategies), key=lambda plan: plan.total)
