"""Which parameters are float32 whatever the model's dtype (spec 4)."""

from __future__ import annotations

import re

import torch
from torch import nn

from magi_core.model.linear import Fp8Linear

_FLOAT32 = re.compile(
    r"(x_embedder|t_embedder|y_embedder|final_linear|rope)\.|(\.|^)(q_layernorm|k_layernorm|self_attn_post_norm|mlp_post_norm|final_layernorm)\."
)


def promote(model: nn.Module, params_dtype: torch.dtype) -> None:
    """Give every parameter the dtype it is computed with: float32 for embedders, output and the norms of spec 4,
    ``params_dtype`` for the rest. fp8 layers stay as stored. To be called after tensors were assigned from a file.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, Fp8Linear):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            is_float32 = _FLOAT32.search(f"{prefix}.{name}" if prefix else name)
            parameter.data = parameter.data.to(torch.float32 if is_float32 else params_dtype)
