"""What travels between nodes, and how ComfyUI's values turn into the library's.

ComfyUI's images are float [T, H, W, C] in 0..1, its latents unscaled [1, C, T, h, w] in a dict under "samples"; the library's frames
are uint8 [T, H, W, 3], its latents scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magi_core.config import MAX_SIDE
from magi_core.errors import MagiError
from magi_core.images import Frames
from magi_core.keeping import Run
from magi_core.making import Decode
from magi_core.plan import checked_fps, plan
from magi_core.storyboard import Shot, Storyboard
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import PromptTokens
from magi_core.video import at_rate

PIXELS = 16
"""Width and height are multiples of this: 8 pixels a latent, 2 latents a token."""
SMALLEST, LARGEST = 2 * PIXELS, MAX_SIDE
MOST_SHOWN = 20
"""Choices named in an error."""
SOCKET_IMAGE = "(connected image)"
"""A shot's keyframe name when its picture came through a socket."""
CORE_PROMPT = "(CLIP Text Encode)"
"""Stands for the words of a CONDITIONING that does not say them."""
SAID = "magi"
"""Key of ``Said`` in the dict of a CONDITIONING entry."""
FILMED = "magi_video"
"""Key of ``Filmed`` in the dict of a LATENT."""


@dataclass(frozen=True, eq=False)
class Board:
    """A storyboard with its pictures: the value of a MAGI_STORYBOARD socket."""

    storyboard: Storyboard
    images: Mapping[int, Frames] = field(default_factory=dict)
    """Keyframes [H, W, 3] by shot; every shot that names a keyframe has one."""

    def with_keyframe(self, image: Frames, second: float) -> Board:
        """This storyboard with a picture at a second, rounded to a whole one: there a chunk begins, and only a chunk can begin with a picture.

        The shot that begins there gets it; one that is already running is cut in two, which changes nothing else. Raises MagiError when the
        second lies outside of the storyboard.
        """
        if not 0 <= second < self.storyboard.seconds:
            raise MagiError(
                f"second is {second:g}; the storyboard lasts {self.storyboard.seconds:g} s: "
                f"give a second from 0 to before {self.storyboard.seconds:g}"
            )
        chunks = plan(self.storyboard).chunks
        at = min(math.floor(second + 0.5), len(chunks) - 1)
        number, shots = chunks[at].shot, list(self.storyboard.shots)
        images = dict(self.images)
        if at and chunks[at - 1].shot == number:
            start = sum(Fraction(repr(shot.seconds)) for shot in shots[:number])
            end = start + Fraction(repr(shots[number].seconds))
            first = replace(shots[number], seconds=float(at - start))
            shots[number : number + 1] = [first, Shot(first.prompt, float(end - at))]
            images = {shot + (shot > number): picture for shot, picture in images.items()}
            number += 1
        shots[number] = replace(shots[number], keyframe=SOCKET_IMAGE)
        return Board(replace(self.storyboard, shots=tuple(shots)), {**images, number: image})


def add_shot(board: Board | None, prompt: str, seconds: float, image: Frames | None) -> Board:
    """The storyboard and one more shot; without a storyboard the first one."""
    shot = Shot(prompt, seconds, None if image is None else SOCKET_IMAGE)
    if board is None:
        return Board(Storyboard((shot,)), {} if image is None else {0: image})
    shots = (*board.storyboard.shots, shot)
    images = board.images if image is None else {**board.images, len(shots) - 1: image}
    return Board(replace(board.storyboard, shots=shots), images)


@dataclass(frozen=True, eq=False)
class Said:
    """What a CONDITIONING of ours says besides its embeddings, of which it has one a shot."""

    board: Board
    tokens: PromptTokens
    negative: bool
    encode: Callable[[Sequence[str]], list[Caption]] | None = None
    """Other words in the same way, where that is possible."""


@dataclass(frozen=True, eq=False)
class Filmed:
    """The video that was decoded while a LATENT was made."""

    run: Run
    vae: str
    """``MagiVAE.fingerprint`` of what decoded it."""
    scale_factor: float
    """Of the run's latents; the LATENT's are divided by it."""
    samples: Tensor
    """The LATENT's own; after another node changed them the video is not theirs."""

    def serves(self, latent: Mapping[str, Any], vae: str, fps: float) -> bool:
        """Whether it is what decoding ``latent`` would give."""
        whole = 0 < len(self.run.fragments) == self.run.done
        return latent["samples"] is self.samples and vae == self.vae and fps == self.run.asked.fps and whole

    def last_frame(self, decode: Decode) -> Frames:
        """[1, H, W, 3], decoded without the loss of the video."""
        return self.run.chunk(self.run.first + self.run.done - 1).decoded(decode)[-1:]


def conditioning_of(captions: Iterable[Caption], said: Said) -> list[list[Any]]:
    """A CONDITIONING: one entry a shot, [embedding [1, L, C], {"attention_mask": [1, L], "magi": said}]."""
    return [
        [caption.embedding[None], {"attention_mask": caption.mask[None].long(), "pooled_output": None, SAID: said}]
        for caption in captions
    ]


def captions_of(conditioning: Any, channels: int, seconds: float) -> tuple[Said, list[Caption]]:
    """What ``conditioning_of`` was given, or the one prompt of core's CLIP Text Encode, shown for ``seconds``.

    Raises MagiError for captions that are not ``channels`` wide, and for a CONDITIONING that MAGI cannot read.
    """
    said = conditioning[0][1].get(SAID) if conditioning else None
    if not isinstance(said, Said):
        said = Said(Board(Storyboard((Shot(CORE_PROMPT, seconds),))), PromptTokens(), False)
    if len(conditioning) != len(said.board.storyboard.shots):
        raise MagiError(
            f"conditioning has {len(conditioning)} entries; connect 'Encode Storyboard (MAGI)' directly, or one CLIP Text Encode: "
            "MAGI combines no prompts"
        )
    captions = [caption_of(embedding, extra.get("attention_mask")) for embedding, extra in conditioning]
    for caption in captions:
        if caption.channels != channels:
            raise MagiError(
                f"conditioning is {caption.channels} wide, the model reads {channels}; use the text encoder that belongs to it: "
                "T5-XXL for MAGI-1, its own for magi-nano"
            )
    return said, captions


def caption_of(embedding: Tensor, mask: object) -> Caption:
    """The real tokens of what a T5 behind a CLIP socket gives, [1, L, C] and [1, L]; MagiError where padding is not marked."""
    if not isinstance(mask, Tensor):
        raise MagiError(
            "clip does not mask its padding, which changes what MAGI understands: set the type of 'Load CLIP' to 'mochi' or 'ltxv'"
        )
    return Caption(embedding[0].float().cpu(), mask.reshape(-1)[: embedding.shape[1]].bool().cpu()).compact()


def frames_of(images: Tensor, name: str) -> Frames:
    """uint8 [T, H, W, 3] of an IMAGE [T, H, W, 1..4] in 0..1 (transparency over black); MagiError for NaN or another shape."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or not images.numel():
        raise MagiError(f"{name} has shape {list(images.shape)}; it must be an image [frames, height, width, 3]")
    images = images.detach().float().cpu()
    if not bool(torch.isfinite(images).all()):
        raise MagiError(f"{name} holds NaN or infinite pixels; look at the node that made it")
    colour = images[..., :3] * images[..., 3:] if images.shape[-1] == 4 else images.expand(*images.shape[:3], 3)
    pixels: Frames = (colour.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return pixels


def image_of(frames: Frames) -> Tensor:
    """IMAGE [T, H, W, 3] float32 in 0..1 of uint8 frames."""
    return torch.from_numpy(np.ascontiguousarray(frames)).float() / 255


def first_image(images: Tensor | None, name: str) -> Frames | None:
    """The first picture [H, W, 3] of an IMAGE, if there is one."""
    return None if images is None else frames_of(images[:1], name)[0]


def last_frames(images: Tensor, rate: float | Fraction, fps: int, count: int, name: str) -> Frames:
    """The last ``count`` frames, at ``fps``, of an IMAGE that plays at ``rate``; frames are repeated or dropped, never blended."""
    source = checked_fps(rate)
    first = max(0, len(images) - int(-(-count * source // fps)) - 1) if source != fps else max(0, len(images) - count)
    frames = frames_of(images[first:], name)
    if source != fps:
        timed = ((Fraction(i) / source, 1 / source, frame) for i, frame in enumerate(frames))
        frames = np.stack(list(at_rate(timed, Fraction(fps), name)))
    return frames[-count:]


def latents_of(latent: Mapping[str, Any], channels: int, scale_factor: float, name: str) -> Tensor:
    """Scaled latents [1, C, T, h, w] of a LATENT; MagiError when another kind of model made it."""
    samples = latent.get("samples")
    if not isinstance(samples, Tensor) or samples.ndim != 5 or samples.shape[0] != 1 or samples.shape[1] != channels:
        shape = list(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise MagiError(f"{name} is {shape}; it must be one video's latents [1, {channels}, frames, height, width]")
    if not bool(torch.isfinite(samples).all()):
        raise MagiError(f"{name} holds NaN or infinite values; look at the node that made it")
    return samples.float() * scale_factor


def check_size(width: int, height: int) -> None:
    """Raise MagiError unless both are 0 (the model's own) or multiples of 16 from 32 to 8192."""
    for name, value in (("width", width), ("height", height)):
        if not isinstance(value, int):
            raise MagiError(f"{name} is {str(value)[:40]!r}; it must be a whole number of pixels")
        if value and (value % PIXELS or not SMALLEST <= value <= LARGEST):
            near = min(LARGEST, max(SMALLEST, round(value / PIXELS) * PIXELS))
            raise MagiError(
                f"{name} is {value}; it must be a multiple of {PIXELS} from {SMALLEST} to {LARGEST}, or 0 for the model's own: try {near}"
            )


def checked(*checks: Callable[[], object]) -> bool | str:
    """True, or what the first MagiError says: the answer of a node's validation."""
    try:
        for check in checks:
            check()
    except MagiError as error:
        return str(error)
    return True


def check_choice(name: str, value: object, options: Sequence[str]) -> None:
    """Raise MagiError unless ``value`` is one of the options; None is linked and not known yet."""
    if value is not None and value not in options:
        shown = ", ".join(options[:MOST_SHOWN]) + (", ..." if len(options) > MOST_SHOWN else "")
        raise MagiError(
            f"{name} is {str(value)[:100]!r}, which is not in list; choose one of: {shown or 'nothing there yet'}"
        )
