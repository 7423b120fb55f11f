"""Between nodes and the library's ``Making``: what sockets carry goes in, latents come out, so that no VAE is needed.

A latent frame is four video frames, so a LATENT is rounded up to four frames; what decodes chunk by chunk is exact to the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from magi_core.config import MagiConfig, Sampling
from magi_core.errors import MagiError
from magi_core.images import Frames
from magi_core.lora import Used
from magi_core.making import FRAMES_PER_LATENT, Making
from magi_core.plan import Plan, plan
from magi_core.storyboard import Storyboard
from magi_core.text.caption import Caption

from .model import MagiModel
from .values import Said

PATCH = 2 * FRAMES_PER_LATENT
"""Pixels of a latent, in height and in width."""

Encode = Callable[[Frames, int, int], Tensor]
"""Scaled latents [1, C, t, h, w] of frames [T, H, W, 3] brought to a height and width in pixels."""


@dataclass(frozen=True)
class Setting:
    """How a new video is made: height, width in pixels (0: the model's own), seed and sampling."""

    height: int
    width: int
    seed: int
    sampling: Sampling

    def size(self, config: MagiConfig) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height or config.height, self.width or config.width


def start(
    model: MagiModel, setting: Setting, said: Said, prefix: Tensor | None = None, loras: Sequence[Used] = ()
) -> Making:
    """A new video. prefix: scaled latents that it continues, whose size it takes. loras: of the model. Raises MagiError for what does not fit."""
    height, width = (side // PATCH for side in setting.size(model.config)) if prefix is None else prefix.shape[3:]
    return Making.start(
        model.dit,
        setting.sampling,
        height=height,
        width=width,
        seed=setting.seed,
        negative=said.negative,
        special=model.special_tokens(),
        prefix=prefix,
        loras=loras,
    )


def add(
    making: Making,
    model: MagiModel,
    layout: Plan,
    said: Said,
    captions: Sequence[Caption],
    images: Mapping[int, Tensor],
) -> None:
    """Plan more chunks. captions: one a shot. images: latents [1, C, 1, h, w] by chunk of the layout, see ``encode_pictures``."""
    told = [captions[chunk.shot] for chunk in layout.chunks]
    making.add(layout, told, images, special=model.special_tokens(), tokens=said.tokens)


def lay_out(
    config: MagiConfig,
    storyboard: Storyboard,
    sampling: Sampling,
    *,
    prefix: Tensor | None = None,
    more_to_come: int = 0,
) -> Plan:
    """The chunks of a storyboard. prefix: latents of a video that is continued."""
    frames = 0 if prefix is None else prefix.shape[2] * FRAMES_PER_LATENT
    chunk_frames = sampling.chunk_width * FRAMES_PER_LATENT
    return plan(storyboard, config.fps, chunk_frames=chunk_frames, prefix_frames=frames, more_to_come=more_to_come)


def encode_pictures(
    layout: Plan, said: Said, image: Frames | None, encode: Encode | None, height: int, width: int
) -> dict[int, Tensor]:
    """Latents [1, C, 1, h, w] of the keyframes and of a first image [H, W, 3], by chunk of the layout.

    Raises MagiError when a chunk would get two, or there is no VAE to encode with.
    """
    pictures = {chunk.index: said.board.images[chunk.shot] for chunk in layout.chunks if chunk.keyframe is not None}
    if image is not None:
        if 0 in pictures:
            raise MagiError("start_image is connected and the first shot has a keyframe too; disconnect one of the two")
        pictures[0] = image
    if not pictures:
        return {}
    if encode is None:
        raise MagiError("there is a start image or a keyframe but no VAE; connect 'Load MAGI VAE' to the vae input")
    return {chunk: encode(picture[None], height, width) for chunk, picture in pictures.items()}
