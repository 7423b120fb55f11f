"""Which weights a model was read from, as digests: what is done to them afterwards, such as merging a LoRA, does not change these.

Two of them, for the whole of 48 GB would take minutes to read once more: of the output layer, every value; of all tensors, a few values
each, as they are stored. So it does not matter where the weights are kept, nor in what they compute.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from magi_core.model.dit import MagiDiT

OUTPUT, SAMPLE = "weights", "sampled_weights"
VALUES = 64


def output_digest(model: MagiDiT) -> str:
    """Of the output layer as it is now."""
    weight = model.final_linear.linear.weight.detach().float().cpu().contiguous()
    return hashlib.sha256(weight.numpy().tobytes()).hexdigest()


def sample(tensor: Tensor) -> bytes:
    """Some values from its middle: one page of a file that is mapped, and changed wherever a matrix as a whole is."""
    flat = tensor.reshape(-1)
    middle = flat.numel() // 2
    return flat[middle : middle + VALUES].cpu().contiguous().view(torch.uint8).numpy().tobytes()


def origin(model: MagiDiT, samples: Mapping[str, bytes]) -> dict[str, str]:
    """Of a model that has just been read. samples: of its tensors, by name, in any order."""
    digest = hashlib.sha256()
    for name, values in sorted(samples.items()):
        digest.update(name.encode() + values)
    return {OUTPUT: output_digest(model), SAMPLE: digest.hexdigest()}
