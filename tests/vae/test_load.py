"""Configuration and weights: what is written is read back, what cannot be used is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi_core.errors import MagiError
from magi_core.vae import VAEConfig, ViTVAE, load_vae, parse_vae_config, save_vae, vae_config_document

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_config_round_trip() -> None:
    config = VAEConfig(embed_dim=96, num_heads=3, use_final_proj=True, norm_code=True)
    assert parse_vae_config(vae_config_document(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_rope": True}, "use_rope"),
        ({"with_cls_token": False}, "with_cls_token"),
        ({"double_z": False}, "double_z"),
        ({"depth": 0}, "depth"),
        ({"depth": "3"}, "depth"),
        ({"depth": 1.5}, "whole number"),
        ({"norm_code": 1}, "norm_code"),
        ({"num_heads": 7}, "num_heads"),
        ({"patch_size": 7}, "patch_size"),
        ({"wavelets": 3}, "wavelets"),
    ],
)
def test_unsupported_config_is_refused(change: dict, message: str) -> None:
    document = vae_config_document(VAEConfig())
    document["ddconfig"] |= change
    with pytest.raises(MagiError, match=message):
        parse_vae_config(document)


def test_other_vae_is_refused() -> None:
    with pytest.raises(MagiError, match="ddconfig"):
        parse_vae_config({"_class_name": "AutoencoderKL"})


def test_saved_vae_is_read_back(tiny_vae: ViTVAE, tmp_path: Path) -> None:
    save_vae(tiny_vae, tmp_path, torch.bfloat16)
    loaded = load_vae(tmp_path, dtype=torch.bfloat16)
    assert loaded.config == tiny_vae.config and not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, tiny_vae.state_dict()[name].bfloat16())
    latent = loaded.encode(torch.zeros(1, 3, 4, 16, 16))
    assert latent.dtype == torch.bfloat16 and bool(torch.isfinite(loaded.decode(latent)).all())


@pytest.mark.parametrize("damage", ["missing", "shape", "garbage", "absent", "config"])
def test_damaged_folder_is_named(tiny_vae: ViTVAE, tmp_path: Path, damage: str) -> None:
    save_vae(tiny_vae, tmp_path)
    path = tmp_path / WEIGHTS
    tensors = load_file(path)
    name = "decoder.proj_in.weight"
    if damage == "missing":
        del tensors[name]
        save_file(tensors, path)
    elif damage == "shape":
        tensors[name] = tensors[name][:-1].clone()
        save_file(tensors, path)
    elif damage == "garbage":
        path.write_bytes(b"not safetensors")
    elif damage == "absent":
        path.unlink()
    else:
        (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(MagiError, match=name if damage in ("missing", "shape") else str(tmp_path)):
        load_vae(tmp_path)


def test_unknown_tensor_is_left_out_with_a_warning(
    tiny_vae: ViTVAE, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_vae(tiny_vae, tmp_path)
    save_file(load_file(tmp_path / WEIGHTS) | {"loss.weight": torch.zeros(1)}, tmp_path / WEIGHTS)
    load_vae(tmp_path)
    assert "loss.weight" in caplog.text
