"""What stands around a transformer that is trained, read from its checkpoint: frames and words become what it sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from magi_core.checkpoint.find import CheckpointFiles
from magi_core.errors import MagiError
from magi_core.text.encoder import T5TextEncoder
from magi_core.text.special_tokens import SpecialTokens
from magi_core.vae import ViTVAE, load_vae


@dataclass(frozen=True)
class Parts:
    """VAE, text encoder and special tokens of a model of magi-nano's kind."""

    vae: ViTVAE
    encoder: T5TextEncoder
    special: SpecialTokens


def read_parts(files: CheckpointFiles, device: torch.device | str = "cpu") -> Parts:
    """The parts of a model, the VAE on ``device``. Raises MagiError where one is missing or damaged."""
    if files.vae is None or files.t5 is None:
        raise MagiError(f"{files.name} is not complete: {'; '.join(files.missing)}")
    if files.special_tokens is None:
        raise MagiError(f"{files.name} is not whole: its special_tokens.npz is missing")
    dit = files.config.dit
    encoder = T5TextEncoder(files.t5, max_length=dit.caption_max_length)
    return Parts(load_vae(files.vae, device), encoder, SpecialTokens.load(files.special_tokens, dit.caption_channels))
