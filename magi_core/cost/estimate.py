"""What one second of a video costs, and the least time it takes on a machine.

The floor: every operation at the rate that the machine achieves, with nothing lost between kernels. Element-wise work (norms, gates,
rotation) is left out: fused, it hides behind the products. Bytes read and written, and weights that stream, count where they take
longer than the operations, for they move beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil

import torch

from magi_core.cost.around import T5_XXL, decode_operations, text_operations
from magi_core.cost.machines import Machine
from magi_core.cost.memory import MemoryPlan, Use, plan_memory, size_text, tokens_per_chunk, weight_bytes
from magi_core.cost.passes import ModelPass, Operations, chunk_passes, operations, video_passes
from magi_core.cost.work import Work
from magi_core.memory.streaming import Place
from magi_core.text.weights import T5Sizes
from magi_core.vae import Tiling, VAEConfig


@dataclass(frozen=True)
class Around:
    """What stands around the transformer; the defaults are the release's."""

    vae: VAEConfig = field(default_factory=VAEConfig)
    tiling: Tiling = field(default_factory=lambda: Tiling(single_frame_rule=False))
    text: T5Sizes = T5_XXL


@dataclass(frozen=True)
class Traffic:
    """Bytes, weights and keys and values only."""

    weights: float
    """Read for the passes, each of which needs all of them."""
    keys_read: float
    keys_written: float
    host: float
    """Over the link from main memory."""

    @property
    def device(self) -> float:
        return self.weights + self.keys_read + self.keys_written


@dataclass(frozen=True)
class Estimate:
    """One chunk in the middle of a long video, and a whole video."""

    use: Use = field(repr=False)
    machine: Machine
    plan: MemoryPlan = field(repr=False)
    tokens: int
    """Of a chunk."""
    words: int
    """Of a prompt."""
    passes: tuple[ModelPass, ...] = field(repr=False)
    """Per chunk."""
    chunk: Operations
    decode: float
    """Operations of the VAE, per chunk."""
    encode: float
    """Operations of the text encoder, per prompt."""
    traffic: Traffic
    """Per chunk."""
    chunks: int
    """Of the whole video."""
    video: Operations
    """The transformer's, window filling and emptying included."""

    def seconds(self, done: Operations) -> float:
        """The least that the transformer's operations take."""
        machine, dit = self.machine, self.use.config.dit
        share = 0.0
        if machine.fp8 and (self.use.fp8 or dit.fp8_quant):
            rows = sum(len(one.told) for one in self.passes) * self.tokens
            share = max(0, dit.num_layers - 2) * Work.of(dit).per_token * rows / self.chunk.products
        products = done.products * ((1 - share) / machine.products + (share / machine.fp8 if share else 0))
        return products + (done.attention + done.text_attention) / machine.attention

    @property
    def decode_seconds(self) -> float:
        return self.decode / self.machine.products

    @property
    def memory_seconds(self) -> float:
        """Of the traffic on the device, per chunk."""
        return self.traffic.device / self.machine.memory

    @property
    def host_seconds(self) -> float:
        """Of what streams, per chunk."""
        return self.traffic.host / self.machine.host if self.machine.host else 0.0

    @property
    def floor(self) -> float:
        """Seconds per chunk."""
        return max(self.seconds(self.chunk), self.memory_seconds, self.host_seconds) + self.decode_seconds

    def text(self) -> str:
        """The report as lines of text."""
        use, plan, chunk, traffic = self.use, self.plan, self.chunk, self.traffic
        sampling, machine, done = use.sampling, self.machine, self.seconds(self.chunk)
        full = max(self.passes, key=lambda one: len(one.told))
        kinds = [one.kind for one in self.passes]
        per_kind = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        capacity = machine.capacity
        fits = f"; {'fits' if plan.fits(capacity) else 'DOES NOT FIT'} {size_text(capacity)}" if capacity else ""
        seconds = sampling.chunk_width * use.config.temporal_downsample_factor / use.config.fps
        whole = self.seconds(self.video) + self.chunks * self.decode_seconds
        rows = [
            ("video", f"{plan.text().partition(':')[0]}, {sampling.num_steps} steps, prompts of {self.words} tokens"),
            ("tokens", f"{self.tokens:,} a chunk of {seconds:.2g} s, {len(full.told) * self.tokens:,} in a full pass"),
            ("passes", f"{len(self.passes)} a chunk: {per_kind}"),
            ("linear layers", f"{amount(chunk.products)} a chunk"),
            ("self-attention", amount(chunk.attention)),
            ("text attention", amount(chunk.text_attention)),
            ("VAE decoding", amount(self.decode)),
            ("text encoder", f"{amount(self.encode)} a prompt"),
            ("bytes moved", f"{size_text(int(traffic.weights))} of weights, {size_text(int(traffic.keys_read))} of keys and values read, "
                            f"{size_text(int(traffic.keys_written))} written, {size_text(int(traffic.host))} from main memory"),
            ("memory", f"{size_text(plan.total)}: weights {size_text(plan.weights + plan.slots)}, keys and values {size_text(plan.kv_cache)}, "
                       f"activations {size_text(plan.activations)}, VAE {size_text(plan.beside)}, context {size_text(plan.context)}{fits}"),
            ("floor", f"{_seconds(self.floor)} a chunk on {machine.name}: operations {_seconds(done)}, memory {_seconds(self.memory_seconds)}, "
                      f"main memory's link {_seconds(self.host_seconds)} (the longest counts), decoding {_seconds(self.decode_seconds)}"),
            ("whole video", f"{self.chunks} chunks, {amount(self.video.total)}, at least {_seconds(whole)}"),
        ]  # fmt: skip
        return "\n".join(f"{name:<16} {said}" for name, said in rows)


def estimate(use: Use, machine: Machine, around: Around, *, seconds: float, words: int) -> Estimate:
    """What ``use`` costs on ``machine``. seconds: of the whole video. words: tokens of a prompt."""
    config, dit, sampling = use.config, use.config.dit, use.sampling
    patch = around.vae.patch_size
    tokens = tokens_per_chunk(config, sampling, use.height, use.width, patch)
    passes = tuple(chunk_passes(sampling))
    chunks = max(1, ceil(seconds * config.fps / (sampling.chunk_width * config.temporal_downsample_factor)))
    outside, layers = weight_bytes(dit, use.fp8)
    keys = tokens * dit.num_layers * Work.of(dit).key_bytes
    keys_read = keys * sum(one.past for one in passes)
    traffic = Traffic(
        weights=len(passes) * (outside + sum(layers)),
        keys_read=keys_read,
        keys_written=keys * sum(one.written for one in passes),
        host=len(passes) * sum(layers) + keys_read if use.weights == "streamed" else 0,
    )
    return Estimate(
        use,
        machine,
        plan_memory(use),
        tokens,
        words,
        passes,
        operations(dit, passes, tokens, words),
        decode_operations(around.vae, around.tiling, sampling.chunk_width, use.height // patch, use.width // patch),
        text_operations(around.text, words),
        traffic,
        chunks,
        operations(dit, video_passes(sampling, chunks), tokens, words),
    )


def place(use: Use, capacity: int) -> Place:
    """Where layers live on a device of ``capacity`` bytes (0: enough): resident where that fits."""
    resident = replace(use, weights="resident")
    return "resident" if not use.gpu or not capacity or plan_memory(resident).fits(capacity) else "streamed"


def vae_bytes(config: VAEConfig, dtype: torch.dtype = torch.bfloat16) -> int:
    """Of its weights, both halves, by default as they are beside a model on a GPU; what is not in blocks left out."""
    width = config.embed_dim
    return int(2 * config.depth * width * width * (4 + 2 * config.mlp_ratio) * dtype.itemsize)


def amount(count: float) -> str:
    """Operations for people."""
    for size, name in ((1e15, "PF"), (1e12, "TF"), (1e9, "GF")):
        if count >= size:
            return f"{count / size:,.3g} {name}" if count < 1000 * size else f"{count / size:,.0f} {name}"
    return f"{count / 1e6:.3g} MF"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 100 else f"{value:.2g} s" if value >= 0.01 else f"{value * 1e3:.2g} ms"
