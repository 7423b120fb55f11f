"""Reading and writing a VAE folder: ``config.json`` beside ``diffusion_pytorch_model.safetensors``, the public layout."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from magi_core.errors import MagiError
from magi_core.files import atomic_write
from magi_core.vae.config import read_vae_config, vae_config_document
from magi_core.vae.vit import ViTVAE

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

log = logging.getLogger(__name__)


def load_vae(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ViTVAE:
    """The VAE of ``folder``, in evaluation mode, on ``device``, with weights and arithmetic in ``dtype``.

    Raises MagiError when a file is missing or damaged, or a weight is missing or has another shape; tensors that the network
    does not have are left out with a warning.
    """
    folder = Path(folder)
    config = read_vae_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise MagiError(f"the VAE's weights {path} are missing; the folder must hold {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        tensors = load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise MagiError(f"cannot read the VAE's weights {path}: {error}; download the file again") from error
    with torch.device("meta"):
        vae = ViTVAE(config)
    wanted = {name: tuple(parameter.shape) for name, parameter in vae.named_parameters()}
    missing = sorted(set(wanted) - set(tensors))
    if missing:
        raise MagiError(
            f"{path} lacks {len(missing)} weights of the VAE that {CONFIG_FILE} describes, e.g. {missing[0]}"
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise MagiError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, but {CONFIG_FILE} asks for {shape}"
            )
        if not tensors[name].is_floating_point() or not bool(tensors[name].float().isfinite().all()):
            raise MagiError(f"{path}: {name} holds values that are no finite numbers; download the file again")
    unknown = sorted(set(tensors) - set(wanted))
    if unknown:
        log.warning("%s: %d tensors are not part of the VAE and were left out, e.g. %s", path, len(unknown), unknown[0])
    vae.load_state_dict({name: tensors[name].to(dtype) for name in wanted}, assign=True)
    return vae.train(False).requires_grad_(False)


def save_vae(vae: ViTVAE, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write ``config.json`` and the weights in ``dtype``; each file is replaced whole or not at all."""
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in vae.state_dict().items()}
    with atomic_write(Path(folder) / WEIGHTS_FILE) as path:
        save_file(tensors, path)
    with atomic_write(Path(folder) / CONFIG_FILE) as path:
        path.write_text(json.dumps(vae_config_document(vae.config), indent=1) + "\n", encoding="utf-8")
