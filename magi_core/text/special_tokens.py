"""MAGI's special tokens: learned vectors set in front of a caption that say what kind of video is wanted.

The release keeps them in ``special_tokens.npz``: ``caption_token`` [1, C], ``logo_token`` [1, C], ``other_tokens`` [100, C]
(spec section 9), of which the rows below are in use.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magi_core.errors import MagiError

TRANSITION = 0
HIGH_QUALITY = 1
STATIC_FIRST_FRAMES = 2
DYNAMIC_FIRST_FRAMES = 3
BORDERNESS = 4
FIRST_DURATION = 7  # rows 7 to 14: 1 to 8 chunks remain
MOST_CHUNKS = 8
THREE_D_MODEL = 15
TWO_D_ANIME = 16

MAX_BYTES = 64 << 20
"""The release's file holds 3.3 MB; a zip that unpacks to more than this is damaged or an attack."""

_ROWS = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}


@dataclass(frozen=True)
class PromptTokens:
    """Which special tokens stand before a caption. ``duration`` says how many chunks are still to come."""

    high_quality: bool = False
    static_first_frames: bool = False
    dynamic_first_frames: bool = False
    borderness: bool = False
    three_d_model: bool = False
    two_d_anime: bool = False
    duration: bool = False


@dataclass(frozen=True, eq=False)
class SpecialTokens:
    """``caption`` [1, C], ``logo`` [1, C], ``other`` [100, C], all of one floating type."""

    caption: Tensor
    logo: Tensor
    other: Tensor

    @staticmethod
    def load(path: Path, channels: int | None = None, dtype: torch.dtype = torch.float32) -> SpecialTokens:
        """Read an npz; values are rounded to float16 on the way, as in the reference.

        channels: DiTConfig.caption_channels, where it should be checked. Raises MagiError when the file is missing or damaged, lacks
        an array, or is made for another width.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > MAX_BYTES:
                raise MagiError(f"it unpacks to {unpacked} bytes, far more than special tokens have")
            with np.load(Path(path), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in _ROWS if name in archive}
        except Exception as error:  # zip and npy readers raise whatever a damaged file makes them raise
            raise MagiError(
                f"cannot read the special tokens {path}: {error}. Give the model's special_tokens.npz"
            ) from error
        missing = [name for name in _ROWS if name not in arrays]
        if missing:
            raise MagiError(
                f"the special tokens {path} lack {', '.join(missing)}; the file must hold {', '.join(_ROWS)}"
            )
        width = channels or arrays["caption_token"].size
        for name, rows in _ROWS.items():
            if arrays[name].dtype.kind != "f" or not (np.abs(arrays[name]) <= np.finfo(np.float16).max).all():
                raise MagiError(f"the special tokens {path}: {name} holds values that are no finite float16 numbers")
            if arrays[name].shape != (rows, width):
                raise MagiError(
                    f"the special tokens {path}: {name} has shape {list(arrays[name].shape)}, expected [{rows}, {width}]. "
                    f"The file belongs to a model with another caption width"
                )
        return SpecialTokens(*(torch.from_numpy(arrays[name].astype(np.float16)).to(dtype) for name in _ROWS))

    @property
    def channels(self) -> int:
        return self.caption.shape[1]

    def prompt_rows(self, switches: PromptTokens, chunks_remaining: int) -> Tensor:
        """The vectors [n, C] to set before a caption, in their final order; n is the number of switches that are on.

        chunks_remaining counts this chunk: 1 for the last one; more than 8 is 8. Raises MagiError when it is below 1.
        """
        if chunks_remaining < 1:
            raise MagiError(f"chunks_remaining is {chunks_remaining}; it counts this chunk, so it must be at least 1")
        appended = [
            (switches.static_first_frames, STATIC_FIRST_FRAMES),
            (switches.dynamic_first_frames, DYNAMIC_FIRST_FRAMES),
            (switches.borderness, BORDERNESS),
            (switches.high_quality, HIGH_QUALITY),
            (switches.three_d_model, THREE_D_MODEL),
            (switches.two_d_anime, TWO_D_ANIME),
            (switches.duration, FIRST_DURATION + min(chunks_remaining, MOST_CHUNKS) - 1),
        ]
        rows = [row for on, row in reversed(appended) if on]  # each is prepended in turn, so the last comes first
        return self.other[rows]

    def negative_rows(self) -> Tensor:
        """The vectors [4, C] that a negative prompt sets before the null caption: borders, transitions, logos, captions."""
        return torch.cat([self.other[[BORDERNESS, TRANSITION]], self.logo, self.caption])
