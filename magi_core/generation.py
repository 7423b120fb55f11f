"""A video being made: finished chunks as frames, one after the other, and a file to go on from.

A last chunk that was trimmed (a storyboard of 2.5 seconds) is denoised whole. Its cut off frames are kept as ``tail`` and come first
when the video is extended, so the joined video has no gap.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magi_core.config import MagiConfig
from magi_core.denoise.checks import check_latents
from magi_core.denoise.session import FinishedChunk, Progress, Session
from magi_core.errors import MagiError, whole_number
from magi_core.images import Frames, check_frames
from magi_core.model import MagiDiT
from magi_core.plan import ChunkPlan
from magi_core.vae import Tiling, ViTVAE
from magi_core.vae.chunks import decode_frames


@dataclass(frozen=True, eq=False)
class Chunk:
    """A finished chunk."""

    index: int
    """Place in the whole video, from 0; the chunks of a continued video count."""
    plan: ChunkPlan
    """What it was asked to show."""
    frames: Frames
    """uint8 [T, H, W, 3]; 24, fewer at the ends, more where an earlier tail comes first."""
    latents: Tensor
    """[1, C, t, h, w] float32, scaled, as denoised (untrimmed)."""


class Generation:
    """Iterate over it to make the video. It can be left at any chunk, saved, and extended."""

    def __init__(
        self,
        vae: ViTVAE,
        config: MagiConfig,
        tiling: Tiling,
        session: Session,
        plans: Mapping[int, ChunkPlan],
        tail: Frames | None = None,
        undecoded: FinishedChunk | None = None,
    ) -> None:
        self.session = session
        self.pending = dict(plans)
        """What the chunks that are not finished yet are asked to show, by chunk number."""
        self.tail = tail
        """Frames cut off the last finished chunk, uint8 [T, H, W, 3]."""
        self.undecoded = undecoded
        """A clean chunk whose frames were not given out yet: set while it is decoded, and left so by an interrupt."""
        self._vae, self._config, self._tiling = vae, config, tiling

    def __iter__(self) -> Iterator[Chunk]:
        """Finished chunks, each as soon as it is clean, until all that is planned is done."""
        return self.chunks()

    def chunks(self, *, drain: bool = True) -> Iterator[Chunk]:
        """As iterating; drain=False stops with the last chunks in flight, so that an extension continues bit for bit."""
        while not self.finished(drain=drain):
            chunk = self.step(drain=drain)
            if chunk is not None:
                yield chunk

    def step(self, *, drain: bool = True) -> Chunk | None:
        """One denoise step; the chunk that it finished, if any. Interrupted, also while decoding, it loses nothing."""
        if self.undecoded is None:
            self.undecoded = self.session.step(drain=drain)
        if self.undecoded is None:
            return None
        chunk, cut = self._show(self.undecoded)
        del self.pending[chunk.index]
        self.tail, self.undecoded = cut, None
        return chunk

    def finished(self, *, drain: bool = True) -> bool:
        """Whether there is no step left to do; with drain=False, none without leaving a window slot empty."""
        return self.undecoded is None and (self.session.done or (self.session.starved and not drain))

    @property
    def progress(self) -> Progress:
        """Denoise steps done and planned, and the steps of each chunk in flight."""
        return self.session.progress

    @property
    def fps(self) -> int:
        """Frames per second of the video."""
        return self._config.fps

    def save(self, path: Path) -> None:
        """Write a file from which ``Magi.extend`` goes on exactly. All or nothing."""
        pending = {chunk: asdict(planned) for chunk, planned in self.pending.items()}
        extra = {} if self.tail is None else {"tail": torch.from_numpy(self.tail)}
        if self.undecoded is not None:
            extra["undecoded"] = self.undecoded.latents
        self.session.save(path, notes={"pending": json.dumps(pending)}, extra=extra)

    @classmethod
    def load(cls, path: Path, dit: MagiDiT, vae: ViTVAE, config: MagiConfig, tiling: Tiling) -> Generation:
        """The generation that ``save`` wrote; raises MagiError when the file is damaged or belongs to another model."""
        session, notes, extra = Session.load(path, dit)
        tail = extra["tail"].cpu().numpy() if "tail" in extra else None
        if "tail_latents" in extra:  # as a graph that works on latents keeps them
            frames = (1, dit.config.latent_channels, None, session.height, session.width)
            latents = check_latents(f"the tail of {path}", extra["tail_latents"], dit, frames)
            tail = decode_frames(vae, latents, config.scale_factor, tiling)
        try:
            pending = {int(chunk): _checked(ChunkPlan(**plan)) for chunk, plan in json.loads(notes["pending"]).items()}
            first = min(pending) if "undecoded" in extra else -1
            if pending.keys() - {first} != session.state.captions.keys():
                raise ValueError("other chunks are planned")
            if tail is not None:
                check_frames(tail)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise MagiError(f"the session {path} does not say what its chunks are to show; it is damaged") from error
        undecoded = FinishedChunk(first, extra["undecoded"]) if "undecoded" in extra else None
        return cls(vae, config, tiling, session, pending, tail, undecoded)

    def _show(self, finished: FinishedChunk) -> tuple[Chunk, Frames | None]:
        """The chunk as it is shown, and the frames cut off its end."""
        frames = decode_frames(self._vae, finished.latents, self._config.scale_factor, self._tiling)
        planned = self.pending[finished.index]
        whole = self.session.sampling.chunk_width * self._config.temporal_downsample_factor
        # A clip of one latent frame is taken for an image, which is part of what comes out; a clip's frames are not.
        frames = frames[max(0, len(frames) - (whole - planned.skip_frames)) :]
        shown, cut = frames[: planned.frames], frames[planned.frames :]
        if self.tail is not None:
            shown = np.concatenate([self.tail, shown])
        return Chunk(finished.index, planned, shown, finished.latents), cut.copy() if len(cut) else None


def _checked(plan: ChunkPlan) -> ChunkPlan:
    """The plan of a file; raises ValueError where a value cannot be one."""
    for name in ("index", "shot", "skip_frames", "frames", "chunks_remaining"):
        whole_number(name, getattr(plan, name), 0, 1 << 40)
    if not isinstance(plan.prompt, str) or not plan.frames:
        raise ValueError("not a plan")
    return plan
