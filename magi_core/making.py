"""A video being made, in latents: a session, what its chunks are asked to show, and which of their frames were shown.

No VAE is needed. ``Generation`` decodes what comes out; a graph hands it on as latents; ``keeping`` writes it down.

Notable: a last chunk that is not wanted whole (a storyboard of 2.5 seconds) is denoised whole. What was not shown of it comes first when
the video goes on, as the latents of the whole chunk, so that it decodes to the same pixels and the joined video has no gap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise.checks import check_latents
from magi_core.denoise.chunk import ChunkCondition, Progress
from magi_core.denoise.rewind import rewind
from magi_core.denoise.schedule import first_new_frame
from magi_core.denoise.session import Session
from magi_core.errors import MagiError, whole_number
from magi_core.images import Frames
from magi_core.lora.used import Used, check_same, read_used, write_used
from magi_core.model import MagiDiT
from magi_core.plan import ChunkPlan, Plan
from magi_core.text.assembly import chunk_caption, null_caption
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import PromptTokens, SpecialTokens

T = TypeVar("T")
Decode = Callable[[Tensor], Frames]
"""uint8 frames [4 t, H, W, 3] of scaled latents [1, C, t, h, w]."""

FRAMES_PER_LATENT = 4
MOST_FRAMES = 1 << 40


@dataclass(frozen=True, eq=False)
class Span:
    """Clean latents and which of their frames are shown."""

    latents: Tensor
    """[1, C, t, h, w] float32, scaled: all that is decoded."""
    first: int
    """The first frame that is shown, of 4 t."""
    frames: int
    """How many are shown."""

    @property
    def rest(self) -> tuple[Span, ...]:
        """What is not shown at the end, if anything."""
        end = self.first + self.frames
        left = self.latents.shape[2] * FRAMES_PER_LATENT - end
        return (replace(self, first=end, frames=left),) if left > 0 else ()


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished chunk."""

    index: int
    """Place in the whole video, from 0; the chunks of a continued video count."""
    plan: ChunkPlan
    """What it was asked to show."""
    spans: tuple[Span, ...]
    """What is shown: of the chunk itself, and before it what was not shown yet of the one before."""

    @property
    def latents(self) -> Tensor:
        """[1, C, t, h, w] float32, scaled, as denoised (untrimmed)."""
        return self.spans[-1].latents

    @property
    def frames(self) -> int:
        """How many frames are shown."""
        return sum(span.frames for span in self.spans)

    def shown_latents(self) -> Tensor:
        """What is shown as latents [1, C, t, h, w] on the CPU; where it begins or ends within a latent frame, the next border counts."""
        parts = []
        for span in self.spans:
            first, end = (-(-frame // FRAMES_PER_LATENT) for frame in (span.first, span.first + span.frames))
            parts.append(span.latents[:, :, first:end].cpu())
        return torch.cat(parts, dim=2)

    def decoded(self, decode: Decode) -> Frames:
        """What is shown as frames uint8 [T, H, W, 3]."""
        return np.concatenate([decode(span.latents)[span.first : span.first + span.frames] for span in self.spans])


class Making:
    """Adds what is asked for to a session's plan, steps it, and keeps track of what was shown."""

    def __init__(
        self,
        session: Session,
        pending: Mapping[int, ChunkPlan] | None = None,
        unshown: Sequence[Span] = (),
        loras: Sequence[Used] | None = (),
        fp8: bool | None = None,
    ) -> None:
        self.session = session
        self.loras = loras
        """What the model has besides its weights; None: a file of an earlier version does not say."""
        self.fp8 = fp8
        """Whether the weights are quantised when they are read; None: not said."""
        self.pending = dict(pending or {})
        """What the chunks that were not delivered yet are asked to show, by chunk number."""
        self.unshown = tuple(unshown)
        """Clean frames cut off the newest chunk, which come first when the video goes on."""

    @classmethod
    def start(
        cls,
        dit: MagiDiT,
        sampling: Sampling,
        *,
        height: int,
        width: int,
        seed: int,
        negative: bool = False,
        special: SpecialTokens | None = None,
        prefix: Tensor | None = None,
        loras: Sequence[Used] = (),
        fp8: bool | None = None,
    ) -> Making:
        """A new video. height, width: of the latents. negative: steer away from what ``special`` has tokens for. prefix: scaled latents
        that it continues. loras: what ``dit`` has besides its weights. fp8: whether these were quantised when they were read. Raises MagiError for what does not fit.
        """
        if negative and special is None:
            raise MagiError(
                "the negative prompt needs special_tokens.npz, which was not found beside the model; put it there or switch it off"
            )
        null = null_caption(dit.null_caption.detach(), special if negative else None)
        prefix = None if prefix is None else prefix.to(dit.null_caption.device)
        session = Session(dit, sampling, height=height, width=width, seed=seed, null=null, prefix=prefix)
        return cls(session, loras=loras, fp8=fp8)

    @classmethod
    def load(cls, path: Path, dit: MagiDiT) -> Making:
        """The video that ``save`` wrote; raises MagiError when the file is damaged or belongs to another model.

        ``check_loras`` is for whoever goes on with it.
        """
        session, notes, extra = Session.load(path, dit)
        try:
            pending = {int(chunk): checked_plan(planned) for chunk, planned in json.loads(notes["pending"]).items()}
            undelivered = pending.keys() - session.state.captions.keys()
            if session.state.captions.keys() - pending.keys() or not undelivered <= {session.next_chunk - 1}:
                raise ValueError("other chunks are planned")
            if not undelivered <= session.state.clean.keys():
                raise ValueError("a chunk is missing")
            spans = _spans(session, notes, extra)
            if undelivered and "unshown" in notes:  # the last one is that chunk itself
                spans = spans[:-1]
            loras = read_used(notes["loras"]) if "loras" in notes else None
            fp8 = {"true": True, "false": False}[notes["fp8"]] if "fp8" in notes else None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise MagiError(f"the session {path} does not say what its chunks are to show; it is damaged") from error
        return cls(session, pending, spans, loras, fp8)

    def save(self, path: Path) -> None:
        """Write a file from which ``load`` goes on to the same bits. All or nothing."""
        undelivered = self.undelivered
        spans = self.unshown if undelivered is None else undelivered.spans
        notes = {
            "pending": json.dumps({chunk: vars(planned) for chunk, planned in self.pending.items()}),
            "unshown": json.dumps([[span.first, span.frames] for span in spans]),
        }
        if self.loras is not None:
            notes["loras"] = write_used(self.loras)
        if self.fp8 is not None:
            notes["fp8"] = json.dumps(self.fp8)
        self.session.save(path, notes=notes, extra={f"unshown_{n}": span.latents for n, span in enumerate(spans)})

    def check_loras(self, present: Sequence[Used]) -> None:
        """Raise MagiError where the video was made with other LoRAs than the model has now. One that does not say goes on with these."""
        if self.loras is None:
            self.loras = present
        check_same(self.loras, present, "the video")

    def check_fp8(self, present: bool) -> None:
        """Raise MagiError where the video was made with other 8 bits than the model has now. One that does not say goes on with these."""
        if self.fp8 not in (None, present):
            was, now = (
                "quantised to fp8" if each else "in the precision of their file" for each in (self.fp8, present)
            )
            raise MagiError(
                f"the video was made with weights {was}, and the model has them {now}; load it as before (fp8={self.fp8}, or --precision)"
            )
        self.fp8 = present

    def add(
        self,
        layout: Plan,
        captions: Sequence[Caption],
        images: Mapping[int, Tensor] | None = None,
        *,
        special: SpecialTokens | None = None,
        tokens: PromptTokens = PromptTokens(),
    ) -> None:
        """Plan more chunks. captions: what each chunk of the layout is told. images: latents [1, C, 1, h, w] by chunk of the layout.

        Raises MagiError, and adds none, where one does not fit.
        """
        session = self.session
        width, planned = session.sampling.chunk_width, session.state.position.planned
        room = (width - first_new_frame(planned, session.prefix_frames, width)) * FRAMES_PER_LATENT
        if layout.chunks[0].frames > room:
            raise MagiError(
                f"chunk {planned} begins with frames of the video that is continued, and {room} more belong to it; "
                f"{layout.chunks[0].frames} are planned: plan with prefix_frames={self.held_frames}"
            )
        null, longest = self.session.null, self.session.model.config.caption_max_length
        told: dict[tuple[int, int], Caption] = {}  # the same words with the same countdown are held, and saved, once
        conditions = []
        for chunk, caption in zip(layout.chunks, captions, strict=True):
            key = id(caption), chunk.duration_token if tokens.duration else 0
            if key not in told:
                there = caption.to(null.embedding.device)
                told[key] = chunk_caption(there, null, chunk.chunks_remaining, longest, special, tokens)
            conditions.append(ChunkCondition(told[key], (images or {}).get(chunk.index)))
        self.pending |= zip(self.session.add(conditions), layout.chunks, strict=True)

    def rewind(
        self,
        chunk: int,
        clean: Callable[[int], Tensor],
        *,
        unshown: Sequence[Span] = (),
        seed: int | None = None,
        keep_plan: bool = True,
    ) -> None:
        """Stand before ``chunk``, see ``denoise.rewind``. unshown: what the chunk before did not show."""
        rewind(self.session, chunk, clean, seed=seed, keep_plan=keep_plan)
        self.pending = {number: planned for number, planned in self.pending.items() if number >= chunk and keep_plan}
        self.unshown = tuple(unshown)

    def step(self, deliver: Callable[[Finished], T], *, drain: bool = True) -> T | None:
        """One denoise step; what ``deliver`` makes of the chunk that it finished, if any.

        Broken off anywhere, ``deliver`` too, the next step hands the same chunk over again; nothing is lost. drain: see ``Session.step``.
        """
        if not self._owes:
            self.session.step(drain=drain)
        finished = self.undelivered
        if finished is None:
            return None
        result = deliver(finished)
        del self.pending[finished.index]
        self.unshown = finished.spans[-1].rest
        return result

    def chunks(self, *, drain: bool = True, watch: Callable[[Progress], None] | None = None) -> Iterator[Finished]:
        """Finished chunks, each as soon as it is clean. drain=False leaves the last ones in flight, for an extension without a seam.

        ``watch`` is called before the first step and after every step, and may raise to stop: what was finished has been given by then.
        """
        watch = watch or (lambda progress: None)
        watch(self.progress)
        while not self.finished(drain=drain):
            finished = self.step(lambda chunk: chunk, drain=drain)
            if finished is not None:
                yield finished
            watch(self.progress)

    def finished(self, *, drain: bool = True) -> bool:
        """Whether there is nothing left to do; with drain=False, nothing without leaving a window slot empty."""
        return not self._owes and (self.session.done or (self.session.starved and not drain))

    def end(self, *, drain: bool = True) -> int:
        """The chunk before which ``chunks`` stops."""
        position = self.session.state.position
        left = 0 if drain else self.session.sampling.window_size - 1
        return max(position.planned - left, self.session.next_chunk, position.drain_at or 0)

    @property
    def held_frames(self) -> int:
        """Frames of the video that is continued with which the next planned chunk begins: ``prefix_frames`` of the layout for ``add``."""
        whole = self.session.state.position.planned * self.session.sampling.chunk_width
        return max(0, self.session.prefix_frames - whole) * FRAMES_PER_LATENT

    @property
    def next_chunk(self) -> int:
        """The chunk that is delivered next."""
        return self.session.next_chunk - self._owes

    @property
    def undelivered(self) -> Finished | None:
        """A clean chunk that ``step`` could not hand over yet because it was broken off; the session still has it."""
        if not self._owes:
            return None
        session, number = self.session, self.session.next_chunk - 1
        skip = first_new_frame(number, session.prefix_frames, session.sampling.chunk_width)
        own = self._span(self.pending[number], session.state.clean[number][:, :, skip:].clone())
        return Finished(number, self.pending[number], (*self.unshown, own))

    @property
    def _owes(self) -> bool:
        """Whether the newest clean chunk was not handed over."""
        return self.session.next_chunk - 1 in self.pending

    @property
    def progress(self) -> Progress:
        """Denoise steps done and planned, and the steps of each chunk in flight."""
        return self.session.progress

    def _span(self, planned: ChunkPlan, latents: Tensor) -> Span:
        # A clip of one latent frame is taken for an image, which is part of what comes out; a clip's frames are not.
        new = self.session.sampling.chunk_width * FRAMES_PER_LATENT - planned.skip_frames
        return Span(latents, max(0, latents.shape[2] * FRAMES_PER_LATENT - new), planned.frames)


def _spans(session: Session, notes: Mapping[str, str], extra: Mapping[str, Tensor]) -> tuple[Span, ...]:
    """What a file has of frames that were not shown; raises ValueError or MagiError where that cannot be."""
    if "unshown" in notes:
        ranges = json.loads(notes["unshown"])
        spans = [Span(extra[f"unshown_{n}"], first, frames) for n, (first, frames) in enumerate(ranges)]
    elif "tail_latents" in extra:  # files of version 1
        spans = [Span(extra["tail_latents"], 0, extra["tail_latents"].shape[2] * FRAMES_PER_LATENT)]
    elif "tail" in extra:
        newest = session.state.clean[max(session.state.clean) - ("undecoded" in extra)]
        cut = len(extra["tail"])
        spans = [Span(newest, newest.shape[2] * FRAMES_PER_LATENT - cut, cut)]
    else:
        spans = []
    shape = (1, session.model.config.latent_channels, None, session.height, session.width)
    for span in spans:
        check_latents("what was not shown", span.latents, session.model, shape)
        whole_number("first", span.first, 0, span.latents.shape[2] * FRAMES_PER_LATENT - 1)
        whole_number("frames", span.frames, 1, span.latents.shape[2] * FRAMES_PER_LATENT - span.first)
    return tuple(spans)


def checked_plan(document: Mapping[str, Any]) -> ChunkPlan:
    """The plan in a file; raises ValueError or TypeError where a value cannot be one."""
    plan = ChunkPlan(**document)
    for name in ("index", "shot", "skip_frames", "frames", "chunks_remaining"):
        whole_number(name, getattr(plan, name), 0, MOST_FRAMES)
    if not isinstance(plan.prompt, str) or not plan.frames:
        raise ValueError("not a plan")
    return plan
