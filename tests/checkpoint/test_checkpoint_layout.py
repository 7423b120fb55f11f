"""The layout as data equals the model, and sizes are read back from shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from magi_core.checkpoint.header import TensorInfo
from magi_core.checkpoint.infer import infer_config
from magi_core.checkpoint.layout import compare_layout, expected_tensors
from magi_core.config import DiTConfig
from magi_core.errors import MagiError
from magi_core.model.dit import MagiDiT
from magi_core.presets import PRESETS


def infos(config: DiTConfig) -> dict[str, TensorInfo]:
    return {name: TensorInfo(wanted.shape, wanted.dtypes[0]) for name, wanted in expected_tensors(config).items()}


@pytest.mark.parametrize("name", PRESETS)
def test_layout_equals_model(name: str) -> None:
    config = PRESETS[name].dit
    with torch.device("meta"):
        state = MagiDiT(config).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: wanted.shape for name, wanted in expected_tensors(config).items()
    }


@pytest.mark.parametrize(("name", "parameters"), [("4.5b", 4_459_898_128), ("24b", 23_899_281_936)])
def test_parameters_of_the_release(name: str, parameters: int) -> None:
    assert sum(info.numel for info in infos(PRESETS[name].dit).values()) == parameters


@pytest.mark.parametrize("name", PRESETS)
def test_config_is_inferred_from_shapes(name: str) -> None:
    dit = PRESETS[name].dit
    config, notes = infer_config(infos(dit), Path("model"), distill=dit.distill)
    assert config == PRESETS[name]
    assert name in notes[0]


def test_unknown_sizes_are_inferred(tiny: DiTConfig) -> None:
    odd = replace(tiny, cond_hidden_ratio=9.5 / 32, gated_linear_unit=True, params_dtype=torch.bfloat16)
    config, notes = infer_config(infos(odd), Path("model"), distill=False)
    assert expected_tensors(config.dit) == expected_tensors(odd)
    assert "guesses" in notes[0]


def test_error_lists_names(tiny: DiTConfig) -> None:
    found = infos(tiny)
    del found["rope.bands"]
    found["extra.weight"] = TensorInfo((1,), torch.float32)
    found["x_embedder.weight"] = TensorInfo((1, 2), torch.float32)
    with pytest.raises(MagiError) as error:
        compare_layout(found, tiny, Path("model"))
    for part in ("1 missing: rope.bands", "1 not expected: extra.weight", "x_embedder.weight [1, 2] float32, needed"):
        assert part in str(error.value)
    with pytest.raises(MagiError, match=r"missing: .* and \d+ more"):
        compare_layout({n: i for n, i in infos(tiny).items() if "self_attention" not in n}, tiny, Path("model"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blocks.0.cross_attn.q.weight patch_embedding.weight", "Wan"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("transformer_blocks.0.scale_shift_table", "LTX"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5"),
        ("decoder.proj_in.weight", "VAE"),
        ("videodit.lora_A.weight", "LoRA"),
        ("something.else", "something.else"),
    ],
)
def test_other_models_are_named(name: str, kind: str, tiny: DiTConfig) -> None:
    found = {part: TensorInfo((1,), torch.float32) for part in name.split()}
    with pytest.raises(MagiError, match=f"not a MAGI-1 DiT.*{kind}"):
        compare_layout(found, tiny, Path("model"))
