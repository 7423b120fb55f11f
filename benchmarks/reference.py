"""The public reference on a CPU, in this process: its checkout's own code, with small stand-ins for what needs a GPU.

Notable:
- Nothing of the reference is part of this repository: the folder of a checkout is an argument.
- Stand-ins are made of what torch offers on a CPU and no slower than need be: fused attention for flash-attn, a gather for the gating
  kernel, the rotation as its formula, one process for the groups of torch.distributed.
- The model takes our model's weights by name, and the sampler our noise and captions, so outputs can be compared.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from magi_core.config import MagiConfig
from magi_core.config_file import config_document
from magi_core.model import MagiDiT

DIT, GENERATE = "inference.model.dit.dit_module", "inference.pipeline.video_generate"
ENGINE = {
    "distributed_backend": "gloo",
    "distributed_timeout_minutes": 1,
    "pp_size": 1,
    "cp_size": 1,
    "cp_strategy": "none",
    "ulysses_overlap_degree": 1,
    "kv_offload": False,
    "enable_cuda_graph": False,
}


def build_reference(checkout: Path, config: MagiConfig, ours: MagiDiT) -> torch.nn.Module:
    """The reference's model with our weights. ``checkout``: the folder that holds its package ``inference``."""
    with _stand_ins(checkout):
        common = importlib.import_module("inference.common")
        model = importlib.import_module("inference.model.dit.dit_model")
        document = config_document(config)
        kinds = {
            "model_config": common.ModelConfig,
            "runtime_config": common.RuntimeConfig,
            "engine_config": common.EngineConfig,
        }
        parts = {}
        for part, kind in kinds.items():
            given = {**document[part], **(ENGINE if part == "engine_config" else {})}
            parts[part] = kind(
                **{name: given[name] for name in kind.__dataclass_fields__ if name in given},
                **({"model_name": "reference"} if part == "model_config" else {}),
            )
        parts["model_config"].params_dtype = config.dit.params_dtype
        built = model.VideoDiTModel(common.MagiConfig(**parts)).eval()
        built.load_state_dict(ours.state_dict())
    return model._high_precision_promoter(built)


def run_reference(
    checkout: Path, model: Any, noise: Tensor, y: Tensor, masks: Tensor, num_steps: int
) -> Iterator[Tensor]:
    """Clean chunks [1, C, t, h, w] of a video from ``noise`` [1, C, T, h, w]; y [2, chunks, L, E] and masks [2, chunks, L] (spec 9)."""
    with _stand_ins(checkout):
        generate = importlib.import_module(GENERATE)
        given = generate.InferenceInput(
            caption_embs=None,
            emb_masks=masks,
            y=y,
            prefix_video=None,
            latent_size=tuple(noise.shape),
            num_steps=num_steps,
            task_idx_list=[0],
            report_chunk_num_list=[y.shape[1]],
            chunk_num=y.shape[1],
        )
        transport = generate.SampleTransport(model=model, transport_inputs=[given], device="cpu")
        transport.xs = [torch.cat([noise, noise])]
        for _, _, chunk in transport.walk():
            yield chunk


def _attention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    """[batch, tokens, heads, d], keys and values with fewer heads."""
    heads = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(*heads, enable_gqa=True).transpose(1, 2)


def _packed_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **_: Any) -> Tensor:
    """Sequences one behind the other, [tokens, heads, d]."""
    parts = (
        torch.tensor_split(part, ends[1:-1].tolist())
        for part, ends in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k))
    )
    return torch.cat(
        [
            _attention(*(p[None] for p in each))[0] if len(each[1]) else torch.zeros_like(each[0])
            for each in zip(*parts, strict=True)
        ]
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[batch, tokens, heads, d]; cos and sin [tokens, r]."""
    r, cos, sin = cos.shape[-1], cos[:, None], sin[:, None]
    a, b, rest = x[..., :r], x[..., r : 2 * r], x[..., 2 * r :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


def _gate(x: Tensor, mapping: Tensor, gates: Tensor) -> Tensor:
    """x [tokens, batch, h] times the row of gates [batch, chunks, h] that mapping [tokens, batch] names."""
    return x * gates.flatten(0, 1)[mapping]


def _alone_ranges(_: Any, x: Tensor) -> Tensor:
    """Every item of the batch sees itself."""
    items, _, frames, height, width = x.shape
    tokens = frames * (height // 2) * (width // 2)
    starts = torch.arange(items, dtype=torch.int32)[:, None] * tokens
    return torch.cat([starts, starts + tokens], dim=1)


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    return module


@contextmanager
def _stand_ins(checkout: Path) -> Iterator[None]:
    """The reference's package is importable and runs on the CPU, inside."""

    def nothing(*_: Any, **__: Any) -> None:
        return None

    language = _module("triton.language", constexpr=object)
    flash = _module("flash_attn", flash_attn_varlen_func=_packed_attention)
    tokens = dict.fromkeys(("get_negative_special_token_keys", "get_special_token_keys", "pad_special_token"), nothing)
    modules = {
        "triton": _module("triton", jit=lambda function: function, language=language),
        "triton.language": language,
        "flash_attn": flash,
        "flash_attn.flash_attn_interface": _module("flash_attn.flash_attn_interface", flash_attn_func=_attention),
        "flash_attn.layers": _module("flash_attn.layers"),
        "flash_attn.layers.rotary": _module("flash_attn.layers.rotary", apply_rotary_emb=_rotate),
        "flashinfer": _module("flashinfer", activation=types.SimpleNamespace(silu_and_mul=_silu_and_mul)),
        "flashinfer.gemm": _module("flashinfer.gemm", bmm_fp8=nothing),
        "inference.infra.checkpoint": _module("inference.infra.checkpoint", load_checkpoint=nothing),
        "inference.pipeline": _module("inference.pipeline", __path__=[str(checkout / "inference" / "pipeline")]),
        "inference.pipeline.prompt_process": _module("inference.pipeline.prompt_process", **tokens),
    }
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        enter(patch.dict(sys.modules, {**modules, **_loaded}))
        enter(patch.object(sys, "path", [str(checkout), *sys.path]))
        enter(patch("torch.cuda.current_device", lambda: "cpu"))
        enter(patch("torch.cuda.synchronize", nothing))
        enter(patch("torch.cuda.get_device_capability", lambda: (8, 0)))
        enter(patch.object(Tensor, "cuda", lambda self: self))
        enter(patch("torch.distributed.get_rank", lambda: 0))
        parallel = importlib.import_module("inference.infra.distributed.parallel_state")
        for name in ("get_tp_world_size", "get_pp_world_size", "get_cp_world_size"):
            enter(patch.object(parallel, name, lambda **_: 1))
        enter(patch.object(parallel, "get_pp_rank", lambda: 0))
        for name in ("is_pipeline_first_stage", "is_pipeline_last_stage"):
            enter(patch.object(parallel, name, lambda: True))
        enter(patch.object(importlib.import_module(DIT), "range_mod_triton", _gate))
        model = importlib.import_module("inference.model.dit.dit_model")
        enter(patch.object(model.VideoDiTModel, "generate_kv_range_for_uncondition", _alone_ranges))
        generate = importlib.import_module(GENERATE)
        silent = types.SimpleNamespace(update=nothing, close=nothing)
        enter(patch.object(generate, "tqdm", lambda **_: silent))
        enter(patch.object(importlib.import_module("inference.common.logger").magi_logger, "disabled", True))
        _loaded.update({name: module for name, module in sys.modules.items() if name.split(".")[0] == "inference"})
        yield


_loaded: dict[str, types.ModuleType] = {}
"""The reference's modules, so that they are imported once."""


def _silu_and_mul(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value
