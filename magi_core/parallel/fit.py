"""Whether a way of sharing a model fits the devices: the memory plan of one of them."""

from __future__ import annotations

from dataclasses import replace

from magi_core.cost.memory import Use, fullest_step, plan_memory, tokens_per_chunk, weight_bytes
from magi_core.parallel.units import share_of
from magi_core.parallel.worker import Strategy


def device_bytes(use: Use, strategy: Strategy) -> int:
    """What a device needs at most. Where layers are shared otherwise than in a line, every device has all weights and what is remembered."""
    plan = plan_memory(use)
    count = strategy.pipeline
    if count == 1 or use.weights == "streamed":
        return plan.total
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
    ).total
