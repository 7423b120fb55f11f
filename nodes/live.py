"""A run from its first step to its last: chunks are kept, decoded and shown as they become clean, looked at, and made again if asked.

Notable: knows nothing of ComfyUI; what it needs of a host is handed over in a ``Studio``. A run that could not be kept on disk (``run`` is
None) goes on in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from magi_core.denoise.noise import SEEDS
from magi_core.denoise.schedule import Schedule
from magi_core.denoise.session import Session
from magi_core.errors import MagiError
from magi_core.growing_mp4 import read_fragment
from magi_core.images import Frames
from magi_core.keeping import VIDEO, Run
from magi_core.live import Live, LiveChunk, produce
from magi_core.making import FRAMES_PER_LATENT, Decode, Making
from magi_core.plan import ChunkPlan
from magi_core.retake import reword
from magi_core.run_lock import alone
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import PromptTokens, SpecialTokens

from .kept import NEWEST, Place, read_approved, write_approved
from .pace import Pace, Step
from .review import Answer
from .runs import KeptStrip, ShownChunk, Told
from .timeline import Timeline, timeline

RESTORED = 30
"""Chunks of an earlier process that are shown once more."""


@dataclass(frozen=True)
class Words:
    """How other words are told to a run."""

    whole: Callable[[str], str]
    """With the storyboard's prefix."""
    encode: Callable[[Sequence[str]], list[Caption]]
    special: SpecialTokens | None
    tokens: PromptTokens


@dataclass(frozen=True)
class Studio:
    """What a run is made with."""

    decode: Decode | None
    """None: nothing is shown."""
    strip: Callable[[int, Frames], KeptStrip | None]
    """Writes a chunk's frames for clients."""
    watch: Callable[[Step], None]
    """Called after every step."""
    check: Callable[[], None]
    """Called now and then; raises ``cancelled`` to stop."""
    cancelled: type[BaseException]
    ready: Callable[[], None]
    """Puts transformer and VAE (back) where they compute."""
    hand_over: Callable[[Session], None]
    """Lets a session that is about to go on be run by whom it should."""
    words: Words | None
    """None: they cannot be changed."""
    drain: bool
    review_every: int
    """Chunks between two reviews; 0: none."""


class Work:
    """A run while it is made."""

    def __init__(
        self,
        run: Run | None,
        place: Place,
        making: Making,
        told: Told,
        studio: Studio,
        plans: Mapping[int, ChunkPlan],
        leading: int,
        steps_before: int,
        problem: str | None = None,
    ) -> None:
        """plans, leading: see ``timeline``, as planned at the run's start. steps_before: done before this run. problem: what clients must
        know all the time.
        """
        self.run, self.making = run, making
        self._place, self._told, self._studio = place, told, studio
        self._first, self._end = told.about.first, told.about.end
        self._plans, self._leading, self._problem = {**plans, **making.pending}, leading, problem
        self._live: Live | None = None
        self._locks = ExitStack()
        """Of every take that was made here: no other process may make one, or remove it."""
        self._latents: list[Tensor] = []
        self._approved = 0 if run is None else read_approved(run)
        session = making.session
        step_frames = session.sampling.chunk_width * FRAMES_PER_LATENT / Schedule.of(session.sampling).stage_steps
        self._pace = Pace(steps_before, session.sampling.num_steps, step_frames)
        self._timeline = self._laid_out()
        told.retries, told.retells = run is not None, run is not None and studio.words is not None

    @property
    def latents(self) -> Tensor:
        """What is finished, scaled [1, C, t, h, w] float32 on the CPU; a new tensor."""
        return torch.cat(self._latents, dim=2)

    def make(self) -> None:
        """Make what is missing. Raises ``cancelled`` or what went wrong; all that is finished is kept then."""
        try:
            with self._locks:
                if self.run is not None:
                    self._locks.enter_context(alone(self.run.folder))
                state = self._to_the_end()
            self._told.change(state=state)
        except BaseException as error:
            cancelled = isinstance(error, self._studio.cancelled)
            self._told.change(
                state="stopped" if cancelled else "failed", error=None if cancelled else str(error)[:2000]
            )
            raise

    def _to_the_end(self) -> str:
        """Make it; "finished", or "stopped" by a review."""
        self._restore()
        while True:
            if self._due:
                answer = self._review()
                if answer.action == "stop":
                    return "stopped"
                if answer.action == "retry":
                    self._try_again(answer)
                    continue
                self._approve()
            if self.making.finished(drain=self._studio.drain):
                return "finished"
            self._produce()

    def _restore(self) -> None:
        """Show what an earlier process finished, and decode what it did not come to."""
        if self.run is None:
            return
        next_chunk = self.making.next_chunk
        shown = self._first + len(self.run.fragments)
        kept = [self.run.chunk(index) for index in range(self._first, next_chunk)]
        self._latents = [chunk.shown_latents() for chunk in kept]
        self._plans |= {chunk.index: chunk.plan for chunk in kept}
        self._timeline = self._laid_out()
        self._told.change(shots=self._timeline.shots, next=next_chunk, video=self._video())
        for index in range(self._first, next_chunk):
            if index < shown or self._studio.decode is None:
                recent = index < shown and index >= next_chunk - RESTORED and self._studio.decode is not None
                frames = read_fragment(self.run.video, index - self._first) if recent else None
                self._show(index, frames)
        if self._studio.decode is not None and shown < next_chunk:
            self._studio.ready()
            with Live(self._studio.decode, run=self.run, on_chunk=self._shown) as live:
                for chunk in self.run.unshown(next_chunk):
                    self._studio.check()
                    live.show(chunk)

    def _produce(self) -> None:
        """Denoise to the end or to the next review."""
        studio = self._studio
        studio.hand_over(self.making.session)
        self._live = None if studio.decode is None else Live(studio.decode, run=self.run, on_chunk=self._shown)
        with nullcontext() if self._live is None else self._live as live:
            chunks = produce(
                self.making,
                run=self.run,
                live=live,
                drain=studio.drain,
                watch=lambda progress: self._watch(self._pace.step(progress)),
            )
            with closing(chunks):
                for finished in chunks:
                    self._latents.append(finished.shown_latents())
                    self._told.finished(finished.index)
                    if live is None:
                        self._show(finished.index, None)
                    self._told.change(warning=self._warning())
                    if self._due:
                        break
        self._told.change(warning=self._warning())

    def _watch(self, step: Step) -> None:
        self._told.stepped(step)
        self._studio.watch(step)

    def _shown(self, chunk: LiveChunk) -> None:
        self._show(chunk.index, chunk.frames)
        if chunk.fragment is not None:
            self._told.change(video=self._video())

    def _show(self, index: int, frames: Frames | None) -> None:
        time = self._timeline.chunks[index]
        count = round((time.end - time.start) * self._told.about.fps)
        strip = None if frames is None else self._studio.strip(index, frames)
        self._told.show(ShownChunk(index, time.shot, time.start, time.end, count, strip))

    # Reviews

    @property
    def _due(self) -> bool:
        done, every = self.making.next_chunk - self._first, self._studio.review_every
        return bool(every and done and done % every == 0 and done > self._approved)

    def _review(self) -> Answer:
        try:
            return self._told.desk.wait(lambda: self._told.change(state="paused"), self._studio.check)
        finally:
            self._pace.restart()

    def _approve(self) -> None:
        self._approved = self.making.next_chunk - self._first
        warning = self._told.about.warning
        if self.run is not None:
            try:
                write_approved(self.run, self._approved)
            except MagiError as error:
                warning = str(error)
        self._told.change(state="running", warning=warning)

    def _try_again(self, answer: Answer) -> None:
        """Another take from some chunks back; where that cannot be kept the run stays as it is and is looked at once more."""
        try:
            self._retake(answer)
        except MagiError as error:
            self._told.change(warning=f"nothing was made again: {error}")

    def _retake(self, answer: Answer) -> None:
        assert self.run is not None  # noqa: S101 - ``Told.answer`` lets no other come here
        session, words, after = self.making.session, self._studio.words, self.making.next_chunk
        chunk = after - answer.chunks
        seed = answer.seed
        if seed is None:
            seed = session.seed if answer.prompt is not None else (session.seed + 1) % SEEDS
        said = {number: plan.prompt for number, plan in self._plans.items()}
        if answer.prompt is not None and words is not None:
            said |= dict.fromkeys(range(chunk, after), words.whole(answer.prompt))
        self._studio.ready()  # a run that was finished when it was found has loaded nothing yet
        source, other = self._rewound(chunk, seed)
        different = {n: said[n] for n, plan in other.pending.items() if plan.prompt != said[n]}
        if different and words is not None:
            texts = list(dict.fromkeys(different.values()))
            captions = dict(zip(texts, words.encode(texts), strict=True))
            self._studio.ready()  # the text encoder may have taken the room
            reword(other, different, captions, special=words.special, tokens=words.tokens)
        place = self._place.next()
        take = source.fork(place.folder, source.asked, other)
        self._locks.enter_context(alone(take.folder))
        self.run, self.making, self._place = take, other, place
        self._approved = min(self._approved, chunk - self._first)
        self._latents = self._latents[: chunk - self._first]
        self._plans |= other.pending
        self._timeline = self._laid_out()
        self._told.change(
            state="running",
            take=place.take,
            next=chunk,
            seed=seed,
            shots=self._timeline.shots,
            folder=place.shown,
            session=f"{place.shown}/{NEWEST} [output]",
            video=self._video(),
            warning=None,
        )

    def _rewound(self, chunk: int, seed: int) -> tuple[Run, Making]:
        """Before ``chunk``, in the newest take that goes back so far: one that began later only has the chunks before it."""
        problem: MagiError | None = None
        for place in self._place.takes():
            try:
                run = Run.open(place.folder)
                return run, run.rewound(self.making.session.model, chunk, seed=seed, loras=self.making.loras or ())
            except MagiError as error:
                problem = problem or error
        raise problem or MagiError(f"the run's folder {self._place.folder} is gone")

    # What clients are told

    def _laid_out(self) -> Timeline:
        return timeline(self._plans, self._end, self._told.about.fps, self._leading)

    def _warning(self) -> str | None:
        kept = None if self.run is None else self.run.problem
        shown = None if self._live is None else self._live.problem
        return self._problem if kept is None and shown is None else str(kept or shown)

    def _video(self) -> dict[str, str] | None:
        if self.run is None or not self.run.video.exists():
            return None
        return {"filename": VIDEO, "subfolder": self._place.shown, "type": "output"}
