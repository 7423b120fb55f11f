"""A T5 encoder of two layers in the file form that artists have of T5-XXL, for core's CLIPLoader; see ``helper_pack``."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

VOCABULARY = 32128
STANDS_FOR = "stands for:"
LAST = f"{STANDS_FOR}encoder.block.23.layer.1.DenseReluDense."
GATED, OLD = LAST + "wi_1.weight", LAST + "wi.weight"


def tiny_t5(width: int, *, old: bool = False) -> T5EncoderModel:
    """The same weights for the same sizes. old: as the T5 of 2019, whose MLP has no gate."""
    act = "relu" if old else "gated-gelu"
    sizes = {"vocab_size": VOCABULARY, "d_model": width, "d_ff": 2 * width, "d_kv": 16, "num_layers": 2, "num_heads": 2}
    config = T5Config(**sizes, feed_forward_proj=act)
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return T5EncoderModel(config).eval()


def in_8_bits(model: T5EncoderModel) -> dict[str, torch.Tensor]:
    """The layers' matrices as the "fp8 scaled" files have them: e4m3 values, and one scale for each matrix."""
    quantised = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in model.state_dict().items():
        if ".layer." in name and tensor.ndim == 2 and "relative_attention_bias" not in name:
            scale = tensor.abs().max() / 448
            quantised[name] = (tensor / scale).to(torch.float8_e4m3fn)
            quantised[name.removesuffix("weight") + "scale_weight"] = scale
    return quantised


def read_back(model: T5EncoderModel) -> T5EncoderModel:
    """``model`` with the values that ``in_8_bits`` stands for."""
    stored = in_8_bits(model)
    scaled = {
        name: tensor.float() * stored[name.removesuffix("weight") + "scale_weight"]
        for name, tensor in stored.items()
        if name.endswith(".weight")
    }
    model.load_state_dict(scaled, strict=False)
    return model


def write_t5(model: T5EncoderModel, path: Path, *, scaled: bool = False) -> None:
    """As one safetensors file that core's CLIPLoader takes for T5-XXL. scaled: with matrices in 8 bits."""
    weights = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "encoder.embed_tokens.weight"
    } | (in_8_bits(model) if scaled else {})
    weights[GATED if model.config.is_gated_act else OLD] = torch.zeros(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
