"""Model folders: what training ends in, and what every command takes for ``--model``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from magi_core.checkpoint.find import CheckpointFiles, weights_folder
from magi_core.checkpoint.reader import PICKLE_SUFFIXES, open_weights
from magi_core.config import MagiConfig
from magi_core.config_file import config_document
from magi_core.errors import MagiError
from magi_core.files import atomic_write


def weights_file(config: MagiConfig, out: Path) -> Path:
    """Where a model folder has a transformer's weights."""
    return out / weights_folder(config.dit) / "model.safetensors"


def write_dit(weights: Mapping[str, Tensor], config: MagiConfig, out: Path) -> None:
    """Write a transformer's weights (public names, as they are) and config.json to a model folder; each file whole or not at all."""
    write_weights(weights, weights_file(config, out), {"format": "pt"})
    with atomic_write(out / "config.json") as path:
        path.write_text(json.dumps(config_document(config), indent=2) + "\n", encoding="utf-8")


def write_weights(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors to a safetensors file, whole or not at all. With one entry of metadata equal tensors give equal bytes; several come in any order."""
    held = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    with atomic_write(path) as temporary:
        save_file(held, temporary, metadata)


def write_model(files: CheckpointFiles, weights: Mapping[str, Tensor], out: Path) -> None:
    """A folder like the one a model began with: ``weights`` in the types that it stores, everything around it as it was.

    VAE, text encoder and special tokens are linked where the disk allows it, so they take no room, else copied. Raises MagiError when a
    part is missing or cannot be written.
    """
    dit = bring_parts(files, out)
    stored = open_weights(dit).tensors
    config = replace(files.config, load=".", vae_pretrained="vae", t5_pretrained="t5")
    write_dit({name: value.to(stored[name].dtype) for name, value in weights.items()}, config, out)


def bring_parts(files: CheckpointFiles, out: Path) -> Path:
    """What stands around a transformer, into a model folder; where the transformer is. Raises MagiError as ``write_model`` does."""
    if files.dit is None or files.vae is None or files.t5 is None:
        raise MagiError(f"{files.name} is not complete: {'; '.join(files.missing)}")
    _bring(files.vae, out / "vae")
    _bring(files.t5, out / "t5")
    if files.special_tokens is not None:
        _bring_file(files.special_tokens, out / files.special_tokens.name)
    return files.dit


def check_other_folder(files: CheckpointFiles, out: Path) -> None:
    """Raise MagiError where ``out`` is the folder of the model itself, which a result would replace."""
    own = {path.resolve() for path in (files.dit, files.dit and files.dit / "model.safetensors") if path}
    if weights_file(files.config, out).resolve() in own:
        raise MagiError(f"{out} is the folder of the model that is trained; choose another one for the result")


def _bring(source: Path, target: Path) -> None:
    """The files of a folder, or one file, into the folder ``target``; pickles stay behind."""
    for file in [source] if source.is_file() else sorted(source.iterdir()):
        if file.is_file() and file.suffix not in PICKLE_SUFFIXES:
            _bring_file(file, target / file.name)


def _bring_file(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            os.link(source.resolve(), target)
            return
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        raise MagiError(f"cannot copy {source} to {target}: {error.strerror or error}") from error
