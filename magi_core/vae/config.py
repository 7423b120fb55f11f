"""The VAE's shape, as the ``ddconfig`` object of its public ``config.json`` describes it (spec section 11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from magi_core.errors import MagiError, shorten, whole_number
from magi_core.files import read_json_object

MAX_SIZE, MAX_DEPTH, MAX_RATIO = 16_384, 256, 16
"""No VAE is larger; what a configuration claims beyond is refused before anything is built."""


@dataclass(frozen=True)
class VAEConfig:
    """Sizes and flags of a ``ViTVAE``; the defaults are the release's."""

    video_size: int = 256
    """Height and width in pixels that the position embedding was made for."""
    video_length: int = 16
    """Frames that the position embedding was made for."""
    patch_size: int = 8
    patch_length: int = 4
    in_chans: int = 3
    z_chans: int = 16
    double_z: bool = True
    """The encoder emits mean and log variance (2 x z_chans channels)."""
    embed_dim: int = 1024
    depth: int = 24
    """Blocks in the encoder, and again as many in the decoder."""
    num_heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    with_cls_token: bool = True
    norm_code: bool = False
    """Divide the encoder's output by its length over the channels."""
    ln_in_attn: bool = True
    """Normalise queries, keys and values in each head, instead of a LayerNorm before the attention."""
    conv_last_layer: bool = True
    use_rope: bool = False
    use_final_proj: bool = False
    """Project to 4 channels a pixel before the last convolution, instead of reshaping the tokens as they are."""

    def __post_init__(self) -> None:
        for name in ("video_size", "video_length", "patch_size", "patch_length", "z_chans", "embed_dim", "num_heads"):
            whole_number(f"VAE ddconfig.{name}", getattr(self, name), 1, MAX_SIZE)
        whole_number("VAE ddconfig.depth", self.depth, 1, MAX_DEPTH)
        if not 0 < self.mlp_ratio <= MAX_RATIO:
            raise MagiError(f"VAE ddconfig.mlp_ratio is {self.mlp_ratio}; it must be above 0 and at most {MAX_RATIO}")
        required = {
            "in_chans": 3,
            "double_z": True,
            "with_cls_token": True,
            "conv_last_layer": True,
            "use_rope": False,
        }
        for name, value in required.items():
            if getattr(self, name) != value:
                raise MagiError(
                    f"VAE ddconfig.{name} is {getattr(self, name)}; only {value} is supported, "
                    "which is what the public MAGI-1 VAE has"
                )
        if self.video_size % self.patch_size or self.video_length % self.patch_length:
            raise MagiError(
                f"VAE video_size {self.video_size} and video_length {self.video_length} must be multiples of "
                f"patch_size {self.patch_size} and patch_length {self.patch_length}"
            )
        if self.embed_dim % self.num_heads:
            raise MagiError(f"VAE embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if not self.use_final_proj and self.embed_dim % self.patch_volume:
            raise MagiError(
                f"VAE embed_dim {self.embed_dim} is not a multiple of {self.patch_volume}, the pixels of a patch; "
                "only with use_final_proj may it be another number"
            )

    @property
    def patch_volume(self) -> int:
        """Pixels (in space and time) that one latent position stands for."""
        return self.patch_length * self.patch_size**2

    @property
    def pixel_channels(self) -> int:
        """Channels a pixel before the last convolution."""
        return 4 if self.use_final_proj else self.embed_dim // self.patch_volume

    @property
    def native_grid(self) -> tuple[int, int, int]:
        """(T, H, W) of the position embedding, in latent positions."""
        side = self.video_size // self.patch_size
        return self.video_length // self.patch_length, side, side


def parse_vae_config(document: Mapping[str, Any]) -> VAEConfig:
    """Read the public ``config.json`` (``model_type`` "vit" and ``ddconfig``); unknown fields are refused.

    Raises MagiError naming the field that is unknown, of the wrong type or not supported.
    """
    kind = document.get("model_type", "vit")
    if kind != "vit":
        raise MagiError(f"VAE model_type is {shorten(kind)}; MAGI-1 has the 'vit' one")
    given = document.get("ddconfig")
    if not isinstance(given, Mapping):
        raise MagiError("the VAE's config.json has no 'ddconfig' object; is this the folder of another VAE?")
    known = {field.name: str(field.type) for field in fields(VAEConfig)}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise MagiError(f"VAE ddconfig has unknown fields: {shorten(unknown)}; this VAE is of another kind")
    for name, value in given.items():
        if isinstance(value, bool) != (known[name] == "bool") or not isinstance(value, int | float):
            raise MagiError(f"VAE ddconfig.{name} is {shorten(value)}; it must be of type {known[name]}")
        if known[name] == "int" and not isinstance(value, int):
            raise MagiError(f"VAE ddconfig.{name} is {shorten(value)}; it must be a whole number")
    return VAEConfig(**given)


def read_vae_config(path: Path) -> VAEConfig:
    """Read a ``config.json``; raises MagiError when it is missing, no JSON, or not supported."""
    return parse_vae_config(read_json_object(path))


def vae_config_document(config: VAEConfig) -> dict[str, Any]:
    """The configuration as the public JSON; ``parse_vae_config`` of it gives the same value back."""
    return {"_class_name": "ViTVAE", "model_type": "vit", "ddconfig": asdict(config)}
