"""A video being made: finished chunks as frames, one after the other, and a file to go on from.

A last chunk that was trimmed (a storyboard of 2.5 seconds) is denoised whole. Its cut off frames are kept as ``tail`` and come first
when the video is extended, so the joined video has no gap.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from magi_core.config import MagiConfig
from magi_core.denoise.session import FinishedChunk, Progress, Session
from magi_core.errors import MagiError
from magi_core.images import Frames
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
    ) -> None:
        self.session = session
        self.pending = dict(plans)
        """What the chunks that are not finished yet are asked to show, by chunk number."""
        self.tail = tail
        """Frames cut off the last finished chunk, uint8 [T, H, W, 3]."""
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
        """One denoise step; the chunk that it finished, if any."""
        finished = self.session.step(drain=drain)
        return None if finished is None else self._show(finished)

    def finished(self, *, drain: bool = True) -> bool:
        """Whether there is no step left to do; with drain=False, none without leaving a window slot empty."""
        return self.session.done or (self.session.starved and not drain)

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
        self.session.save(
            path,
            notes={"pending": json.dumps(pending)},
            extra={} if self.tail is None else {"tail": torch.from_numpy(self.tail)},
        )

    @classmethod
    def load(cls, path: Path, dit: MagiDiT, vae: ViTVAE, config: MagiConfig, tiling: Tiling) -> Generation:
        """The generation that ``save`` wrote; raises MagiError when the file is damaged or belongs to another model."""
        session, notes, extra = Session.load(path, dit)
        try:
            pending = {int(chunk): ChunkPlan(**planned) for chunk, planned in json.loads(notes["pending"]).items()}
        except (KeyError, TypeError, ValueError) as error:
            raise MagiError(f"the session {path} does not say what its chunks are to show; it is damaged") from error
        tail = extra["tail"].numpy() if "tail" in extra else None
        return cls(vae, config, tiling, session, pending, tail)

    def _show(self, finished: FinishedChunk) -> Chunk:
        frames = decode_frames(self._vae, finished.latents, self._config.scale_factor, self._tiling)
        planned = self.pending.pop(finished.index)
        shown, cut = frames[: planned.frames], frames[planned.frames :]
        if self.tail is not None:
            shown = torch.cat([torch.from_numpy(self.tail), torch.from_numpy(shown)]).numpy()
        self.tail = cut.copy() if len(cut) else None
        return Chunk(finished.index, planned, shown, finished.latents)
