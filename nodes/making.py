"""A video being denoised from nodes: the session, what its chunks are to show, and what was cut off its end.

Works in latents, so that no VAE is needed unless pictures come in. A latent frame is four video frames, so a video's length is rounded up
to four frames here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from magi_core.checkpoint.find import CheckpointFiles
from magi_core.config import MagiConfig, Sampling
from magi_core.denoise.session import ChunkCondition, FinishedChunk, Progress, Session
from magi_core.errors import MagiError
from magi_core.images import Frames
from magi_core.model import MagiDiT
from magi_core.plan import ChunkPlan, Plan, plan
from magi_core.storyboard import Storyboard
from magi_core.text.assembly import chunk_caption, null_caption
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import SpecialTokens

from .values import Said

FRAMES_PER_LATENT = 4

Encode = Callable[[Frames, int, int], Tensor]
"""Scaled latents [1, C, t, h, w] of frames [T, H, W, 3] brought to a height and width in pixels."""


class MagiModel(nn.Module):
    """What a MODEL of ours holds: the transformer, and what belongs to its checkpoint."""

    def __init__(self, dit: MagiDiT, files: CheckpointFiles) -> None:
        super().__init__()
        self.dit = dit
        self.files = files
        self.device: torch.device | None = None

    @property
    def config(self) -> MagiConfig:
        return self.files.config

    def special_tokens(self) -> SpecialTokens | None:
        """The checkpoint's special tokens, if it has some."""
        path = self.files.special_tokens
        return SpecialTokens.load(path, self.config.dit.caption_channels) if path else None


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


class Making:
    """Adds what is said to a session's plan, runs it, and keeps track of what the chunks show."""

    def __init__(
        self, model: MagiModel, session: Session, pending: Mapping[int, ChunkPlan], tail: Tensor | None = None
    ) -> None:
        self.model, self.session = model, session
        self.pending = dict(pending)
        self.tail = tail
        """Latents cut off the newest finished chunk, because less than a chunk was asked for; they come first when it goes on."""

    @classmethod
    def start(cls, model: MagiModel, setting: Setting, said: Said, prefix: Tensor | None = None) -> Making:
        """A new video. prefix: scaled latents that it continues, whose size it takes. Raises MagiError for what does not fit."""
        dit, patch = model.dit, FRAMES_PER_LATENT * 2
        height, width = (side // patch for side in setting.size(model.config))
        if prefix is not None:
            height, width = prefix.shape[3:]
            prefix = prefix.to(dit.null_caption.device)
        negative = model.special_tokens() if said.negative else None
        if said.negative and negative is None:
            raise MagiError(
                "negative tokens are on, but special_tokens.npz was not found beside the model; put it there or switch them off"
            )
        null = null_caption(dit.null_caption.detach(), negative)
        session = Session(
            dit, setting.sampling, height=height, width=width, seed=setting.seed, null=null, prefix=prefix
        )
        return cls(model, session, {})

    @classmethod
    def load(cls, path: Path, model: MagiModel) -> Making:
        """The video that ``save``, or the command line, wrote; raises MagiError when damaged or of another model."""
        session, notes, extra = Session.load(path, model.dit)
        try:
            pending = {int(chunk): ChunkPlan(**planned) for chunk, planned in json.loads(notes["pending"]).items()}
            parts = [extra["tail_latents"]] if "tail_latents" in extra else []
            # The command line keeps pictures; the clean chunk before ends with the latents of the same frames.
            if "undecoded" in extra:
                del pending[min(pending)]
                parts.append(extra["undecoded"])
            elif "tail" in extra and (latents := len(extra["tail"]) // FRAMES_PER_LATENT):
                parts.append(session.state.clean[max(session.state.clean)][:, :, -latents:])
        except (KeyError, TypeError, ValueError) as error:
            raise MagiError(f"the session {path} does not say what its chunks are to show; it is damaged") from error
        return cls(model, session, pending, torch.cat(parts, dim=2).cpu() if parts else None)

    def add(self, layout: Plan, said: Said, captions: Sequence[Caption], images: Mapping[int, Tensor]) -> None:
        """Plan more chunks. captions: one a shot. images: latents [1, C, 1, h, w] by chunk of the layout, see ``encode_pictures``."""
        tokens, null = self.model.special_tokens(), self.session.null
        embedding = null.embedding
        conditions = [
            ChunkCondition(
                chunk_caption(
                    captions[chunk.shot].to(embedding.device), null, chunk.chunks_remaining, tokens, said.tokens
                ),
                images.get(chunk.index),
            )
            for chunk in layout.chunks
        ]
        self.pending |= zip(self.session.add(conditions), layout.chunks, strict=True)

    def run(self, *, drain: bool, watch: Callable[[Progress], None]) -> Tensor:
        """Denoise what is planned; the finished latents [1, C, t, h, w] float32 on the CPU, scaled.

        ``watch`` is called after every step and may raise to stop. drain=False leaves the last chunks in flight.
        Raises MagiError when there is nothing to finish.
        """
        parts = [] if self.tail is None else [self.tail]
        watch(self.session.progress)
        while not self.session.done and (drain or not self.session.starved):
            finished = self.session.step(drain=drain)
            if finished is not None:
                parts.append(self._keep(finished))
            watch(self.session.progress)
        if not parts:
            raise MagiError(
                "no chunk was finished: the storyboard is shorter than the window and 'finish' is off. "
                "Switch 'finish' on, or make the storyboard longer"
            )
        return torch.cat(parts, dim=2)

    def save(self, path: Path) -> None:
        """Write a session file, all or nothing."""
        pending = {chunk: asdict(planned) for chunk, planned in self.pending.items()}
        extra = {} if self.tail is None else {"tail_latents": self.tail}
        self.session.save(path, notes={"pending": json.dumps(pending)}, extra=extra)

    def _keep(self, finished: FinishedChunk) -> Tensor:
        planned = self.pending.pop(finished.index)
        # A clip of one latent frame is taken for an image, which is part of what comes out; a clip's frames are not.
        new = self.session.sampling.chunk_width - planned.skip_frames // FRAMES_PER_LATENT
        latents = finished.latents[:, :, -new:].cpu()
        shown = -(-planned.frames // FRAMES_PER_LATENT)
        self.tail = latents[:, :, shown:].clone() if shown < latents.shape[2] else None
        return latents[:, :, :shown]


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
