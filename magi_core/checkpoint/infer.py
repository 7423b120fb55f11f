"""Which model is this? A configuration worked out from tensor names, shapes and dtypes, for files that come without one.

Almost every size can be read off a shape. What no tensor tells (distilled or not, the input's scale, the kind of norms) is
taken from the released model of the same shapes, or else from the defaults; every such guess is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from magi_core.checkpoint.header import TensorInfo
from magi_core.checkpoint.layout import FP8, LAYERS, compare_layout, not_magi
from magi_core.config import DiTConfig, MagiConfig, Sampling
from magi_core.errors import MagiError
from magi_core.presets import PRESETS


def infer_config(tensors: Mapping[str, TensorInfo], path: Path, distill: bool) -> tuple[MagiConfig, tuple[str, ...]]:
    """(configuration, what was guessed) for the tensors of the file or folder ``path``.

    ``distill``: whether a name says that this is a distilled model. Raises MagiError when this is no MAGI-1 DiT, and when the
    names, shapes and dtypes do not make up a whole one.
    """
    if not any(name.startswith(LAYERS) for name in tensors):
        raise not_magi(tensors, path)
    read = _sizes(tensors, path)
    fp8 = any(info.dtype == FP8 for info in tensors.values())
    for variant, config in PRESETS.items():
        kind = config.dit.fp8_quant, config.dit.distill
        if kind == (fp8, distill or fp8) and _same_sizes(config.dit, read):
            notes: tuple[str, ...] = (f"no configuration file: the shapes are those of {variant}",)
            break
    else:
        half = read.in_channels == 2 * 16
        distilled = distill or fp8  # fp8 weights were only released of distilled models
        dit = replace(
            read, fp8_quant=fp8, distill=distilled, half_channel_vae=half, x_rescale_factor=0.1 if half else 1.0
        )
        config = MagiConfig(
            dit=dit, sampling=Sampling(cfg_number=1 if distilled else 3, num_steps=16 if distilled else 64)
        )
        notes = (
            f"no configuration file: sizes read from the tensors ({dit.num_layers} layers of width {dit.hidden_size}); "
            f"x_rescale_factor {dit.x_rescale_factor}, half_channel_vae {half}, 1p norms and sampling are guesses",
        )
    if not config.dit.distill:
        notes += ("taken for a base model: nothing says that it is distilled",)
    compare_layout(tensors, config.dit, path)
    return config, notes


def _sizes(tensors: Mapping[str, TensorInfo], path: Path) -> DiTConfig:
    def shape(name: str, length: int) -> tuple[int, ...]:
        info = tensors.get(name)
        if info is None or len(info.shape) not in (length, length + 1) or 0 in info.shape:
            found = "is missing" if info is None else f"has the shape {list(info.shape)}"
            raise MagiError(f"{path} is not a whole MAGI-1 DiT: {name} {found}. Download it again")
        return info.shape[-length:]

    layers = {name[len(LAYERS) :].split(".")[0] for name in tensors if name.startswith(LAYERS)}
    if not all(layer.isdecimal() and len(layer) < 6 for layer in layers):
        raise MagiError(f"{path} is not a whole MAGI-1 DiT: its layers are not numbered. Download it again")
    attention = f"{LAYERS}0.self_attention."
    hidden, channels, frames, patch, _ = shape("x_embedder.weight", 5)
    (head,) = shape(f"{attention}q_layernorm.weight", 1)
    ffn = shape(f"{LAYERS}0.mlp.linear_fc2.weight", 2)[1]
    length, caption = shape("y_embedder.null_caption_embedding", 2)
    queries, keys = (shape(f"{attention}linear_qkv.{name}.weight", 2)[0] for name in ("q", "k"))
    rows = shape("final_linear.linear.weight", 2)[0]
    widths = (shape(name, 2)[0] for name in ("t_embedder.mlp.2.weight", "y_embedder.y_proj_xattn.0.weight"))
    condition, text = (_ratio(width, hidden) for width in widths)
    fc1 = shape(f"{LAYERS}0.mlp.linear_fc1.weight", 2)[0]
    stored = tensors["x_embedder.weight"].dtype
    params = max(tensors.values(), key=lambda info: info.nbytes).dtype
    try:
        return DiTConfig(
            num_layers=max(int(layer) for layer in layers) + 1,
            hidden_size=hidden,
            ffn_hidden_size=ffn,
            num_attention_heads=max(queries // head, 1),
            num_query_groups=max(keys // head, 1),
            kv_channels=head,
            in_channels=channels,
            out_channels=max(rows // (frames * patch * patch), 1),
            patch_size=patch,
            t_patch_size=frames,
            cond_hidden_ratio=condition,
            xattn_cond_hidden_ratio=text,
            caption_channels=caption,
            caption_max_length=length,
            gated_linear_unit=fc1 == 2 * ffn,
            params_dtype=torch.bfloat16 if torch.bfloat16 in (stored, params) else torch.float32,
        )
    except MagiError as error:
        raise MagiError(f"{path} is not a whole MAGI-1 DiT: {error}. Download it again") from error


def _same_sizes(preset: DiTConfig, read: DiTConfig) -> bool:
    """Equal in everything that shapes tell."""
    untold = {
        name: getattr(read, name)
        for name in ("x_rescale_factor", "half_channel_vae", "params_dtype", "fp8_quant", "distill")
    }
    return replace(preset, **untold) == read


def _ratio(width: int, hidden: int) -> float:
    """A ratio that gives ``width`` again when multiplied with ``hidden`` and cut to an integer."""
    ratio = width / hidden
    return ratio if int(hidden * ratio) == width else (width + 0.5) / hidden
