"""What several families take from a golden folder: networks, captions, special tokens, settings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from magi_core.checkpoint.load import load_dit
from magi_core.config import DiTConfig, MagiConfig
from magi_core.config_file import parse_config
from magi_core.golden import Golden
from magi_core.model import MagiDiT
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import PromptTokens, SpecialTokens
from magi_core.vae import ViTVAE, load_vae


def recorded_dit(golden: Golden, name: str) -> MagiDiT:
    """The network of a recorded configuration; one of each is kept while a folder is walked through."""
    return _dit(golden.weights_path(name), golden.config(name).dit)


def recorded_vae(golden: Golden, name: str) -> ViTVAE:
    return _vae(golden.weights_path(name).parent)


@lru_cache(maxsize=8)
def _dit(weights: Path, config: DiTConfig) -> MagiDiT:
    return load_dit(weights, config)


@lru_cache(maxsize=4)
def _vae(folder: Path) -> ViTVAE:
    return load_vae(folder)


def recorded_caption(golden: Golden, text_tokens: int) -> Caption:
    """The recorded text features with their first ``text_tokens`` positions real."""
    embedding = golden.tensors("text.safetensors")["caption_embs"][0, 0]
    return Caption(embedding, torch.arange(len(embedding)) < text_tokens)


def special_tokens(golden: Golden) -> SpecialTokens:
    return SpecialTokens.load(golden.folder / "special_tokens.npz")


def switches_from(env: Mapping[str, str]) -> tuple[PromptTokens, bool]:
    """The reference's flags as our switches, and whether the negative prompt is on."""
    on = {name for name, value in env.items() if str(value).lower() in ("1", "true", "yes", "y", "on", "enabled")}
    switches = PromptTokens(
        high_quality="PAD_HQ" in on,
        static_first_frames="PAD_STATIC" in on,
        dynamic_first_frames="PAD_DYNAMIC" in on,
        borderness="PAD_BORDERNESS" in on,
        three_d_model="PAD_THREE_D_MODEL" in on,
        two_d_anime="PAD_TWO_D_ANIME" in on,
        duration="PAD_DURATION" in on,
    )
    return switches, "NEG_PROMPT" in on


def case_config(golden: Golden, name: str, meta: Mapping[str, Any]) -> MagiConfig:
    """A recorded configuration with the case's own settings laid over it."""
    document = golden.config_document(name)
    return parse_config(
        {
            "model_config": document["model_config"],
            "runtime_config": document["runtime_config"] | (meta.get("runtime") or {}),
            "engine_config": document["engine_config"] | (meta.get("engine") or {}),
        }
    )
