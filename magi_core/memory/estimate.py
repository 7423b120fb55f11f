"""How much memory a model needs while it denoises: weights, KV cache, activations, as plain arithmetic.

Counted for a model that is wholly resident on one device and runs a full window, in the dtype of its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from magi_core.config import MagiConfig, Sampling

CUDA_CONTEXT = 700_000_000
"""What a CUDA context and its libraries take before the first tensor; not in the estimates."""
FLOAT32_COPIES = 3
"""Gate, norm and residual of a layer's output are formed in float32 (spec section 4)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device."""

    weights: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations


def estimate_memory(config: MagiConfig, weight_bytes: int, height: int, width: int) -> MemoryEstimate:
    """Memory to denoise at ``height`` x ``width`` pixels with ``weight_bytes`` of parameters resident.

    The KV cache holds the finished chunks that are still read. Activations are those of one layer over the window and the one
    chunk before it that is run again when it has become clean.
    """
    dit, sampling = config.dit, config.sampling
    itemsize = torch.bfloat16.itemsize if dit.params_dtype == torch.bfloat16 else torch.float32.itemsize
    chunk = tokens_per_chunk(config, height, width)
    heads, groups = (n * dit.kv_channels for n in (dit.num_attention_heads, dit.num_query_groups))
    kv_cache = past_chunks(sampling, config.num_frames) * chunk * dit.num_layers * 2 * groups * itemsize
    mlp = dit.ffn_hidden_size * (3 if dit.gated_linear_unit else 2) * itemsize
    per_token = itemsize * (dit.hidden_size + heads + 2 * groups) + max(mlp, FLOAT32_COPIES * 4 * dit.hidden_size)
    return MemoryEstimate(weight_bytes, kv_cache, (sampling.window_size + 1) * chunk * per_token)


def tokens_per_chunk(config: MagiConfig, height: int, width: int, pixels_per_latent: int = 8) -> int:
    """Tokens of one chunk of ``height`` x ``width`` pixels (12,150 for 720 x 720)."""
    patch = config.dit.patch_size * pixels_per_latent
    return config.sampling.chunk_width // config.dit.t_patch_size * (height // patch) * (width // patch)


def past_chunks(sampling: Sampling, num_frames: int) -> int:
    """Finished chunks whose keys and values are read by a full window: 1 for the release, 4 with a window of 1.

    With an empty ``noise2clean_kvrange`` every chunk reads all before it: the chunks of ``num_frames`` frames.
    """
    ranges = sampling.noise2clean_kvrange
    if not ranges:
        return -(-num_frames // (4 * sampling.chunk_width))
    window, steps = sampling.window_size, sampling.num_steps
    stage = steps // window
    return max(
        ranges[((window - 1 - place) * stage + step) * len(ranges) // steps] - 1 - place
        for place in range(window)
        for step in range(stage)
    )
