"""A session: one video being denoised chunk by chunk, that can be stepped, stopped, stored and extended (spec 8).

Notable:
- The whole sampler is ``chunks`` and ``step``.
- Memory does not grow with the length of the video: kept are the chunks in flight, the keys and values that later steps read, and the few
  clean chunks that a continuation would start from. (Settings that let every chunk see all before it keep all of them.)
- Two ways to go on. While every window slot is filled, ``add`` makes the plan longer as if it had been so from the start. Once a slot
  was left empty the window runs dry first; what is planned then starts a new run that reads the clean chunks again, as a new session
  does which is given those latents as prefix. Both are exact to the bit. (Of an anchor at a keyframe only the session itself knows.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise.checks import check_caption, check_latents, check_size
from magi_core.denoise.chunk import ChunkCondition, FinishedChunk, Progress
from magi_core.denoise.guidance import Runner
from magi_core.denoise.noise import check_seed, chunk_noise
from magi_core.denoise.schedule import (
    ONE_SCENE,
    Schedule,
    Step,
    first_new_frame,
    kv_chunks,
    prefix_kv_length,
    step_embedding,
)
from magi_core.denoise.state import Position, SessionState
from magi_core.denoise.storage import Stored, read_session, write_session
from magi_core.denoise.window import Foreseen, Window
from magi_core.errors import MagiError
from magi_core.model import KVCache, MagiDiT
from magi_core.model.numbers import numbers
from magi_core.text.caption import Caption

T = TypeVar("T")


class Session:
    """Denoises a growing plan of chunks. ``add`` conditions, then take finished chunks from ``chunks``."""

    def __init__(
        self,
        model: MagiDiT,
        sampling: Sampling,
        *,
        height: int,
        width: int,
        seed: int,
        null: Caption,
        prefix: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> None:
        """height, width: of the latents. null: what unguided passes are told. seed: 0 .. 2**64 - 1, see ``chunk_noise``.

        prefix: scaled latents [1, C, P, H, W] of what is continued, of any length; P = 1 is a first image, which becomes the first
        frame of the video that comes out. Whole chunks of it shift the numbering: the first new chunk is number P // chunk_width.
        noise: noise of the whole video [1, C, T, H, W], in place of the seed's.
        Raises MagiError for what does not fit.
        """
        self.model, self.sampling, self.schedule = model, sampling, Schedule.of(sampling)
        self.runner = Runner()
        self.height, self.width, self.seed = height, width, check_seed(seed)
        check_size(model, height, width)
        self.null = check_caption(null, model)
        frames = (1, model.config.latent_channels, None, height, width)
        self.noise = None if noise is None else check_latents("the noise", noise, model, frames)
        parts: Sequence[Tensor] = ()
        if prefix is not None:
            parts = torch.split(check_latents("the prefix", prefix, model, frames), sampling.chunk_width, dim=2)
        self.prefix_frames = sum(part.shape[2] for part in parts)
        offset = self.prefix_frames // sampling.chunk_width
        needed = self.schedule.depends_on(offset, model.config.num_layers, ONE_SCENE)
        clean = {chunk: parts[chunk].clone() for chunk in needed}
        held = {} if len(parts) == offset else {offset: parts[offset].clone()}
        self.state = SessionState(
            Position(offset, offset, offset * self.schedule.stage_steps), {}, held, {}, clean, None
        )

    # What happens

    def chunks(self, *, drain: bool = True) -> Iterator[FinishedChunk]:
        """Denoise what is planned; give each chunk as soon as it is clean.

        drain=True runs the window dry: what is added then starts a new run, as a new session does with these latents as prefix.
        drain=False stops where the next stage would leave a window slot empty, in general with chunks in flight: what is added then
        goes on as if it had been planned from the start.
        """
        while not self.done and (drain or not self.starved):
            finished = self.step(drain=drain)
            if finished is not None:
                yield finished
        if drain:
            self.state = self._dry(self.state)

    def run(self, *, drain: bool = True) -> list[FinishedChunk]:
        """All that ``chunks`` gives."""
        return list(self.chunks(drain=drain))

    @torch.no_grad()
    def step(self, *, drain: bool = True) -> FinishedChunk | None:
        """One denoise step of every chunk in flight; the chunk that it finished, if any. Interrupted, it changes nothing.

        Raises MagiError when all that is planned is done, or, with drain=False, when a window slot would be left empty.
        """
        if self.done or (self.starved and not drain):
            raise MagiError("the plan is exhausted; add chunks to the session before the next step")
        state = self.state
        cache = self._read_clean_chunks(state) if state.cache is None else state.cache
        position = replace(state.position, drain_at=state.position.end) if self.starved else state.position
        now = self.schedule.step(position.offset, position.end, position.clock, state.scenes)
        if now.anchor is not None:
            chunk, place = now.anchor
            self._remember(state.clean[chunk], place, (place, place + 1), cache)

        x = self._latents(state, now)
        stepped = replace(
            state, position=replace(position, clock=position.clock + 1, steps_done=position.steps_done + 1), cache=cache
        )
        window = replace(self._window(state, now, x), foresee=partial(self._foresee, stepped, now, x, drain))
        velocity = self.runner.dispatch(self.model, self.sampling, window, cache)
        sizes = [self.schedule.step_sizes[s] for s in now.steps for _ in range(self.sampling.chunk_width)]
        x = x + velocity[:, :, -x.shape[2] :] * numbers(sizes, x.device)[:, None, None]

        position = stepped.position
        state, finished = self._after(stepped, now, x)
        self.state = self._dry(state) if drain or position.drain_at is not None else state
        cache.keep_from(self.schedule.first_held(position.offset, position.clock))
        return finished

    def add(self, conditions: Sequence[ChunkCondition]) -> range:
        """Plan more chunks behind those planned; gives their numbers. Raises MagiError, and adds none, where one does not fit."""
        first = self.state.position.planned
        compact = {id(c.caption): check_caption(c.caption, self.model) for c in conditions}
        captions = {first + i: compact[id(c.caption)] for i, c in enumerate(conditions)}
        image = (1, self.model.config.latent_channels, 1, self.height, self.width)
        held = {
            first + i: check_latents(f"the keyframe of chunk {first + i}", c.keyframe, self.model, image)
            for i, c in enumerate(conditions)
            if c.keyframe is not None
        }
        for chunk in held.keys() & self.state.held.keys():
            frames = self.state.held[chunk].shape[2]
            raise MagiError(
                f"chunk {chunk} already begins with {frames} frames of the image or clip that is continued; it cannot have a keyframe too"
            )
        if self.noise is not None and self.noise.shape[2] < (first + len(conditions)) * self.sampling.chunk_width:
            raise MagiError(
                f"the noise has {self.noise.shape[2]} latent frames; {first + len(conditions)} chunks of {self.sampling.chunk_width} are planned"
            )
        self.state = replace(
            self.state,
            position=replace(self.state.position, planned=first + len(conditions)),
            captions={**self.state.captions, **captions},
            held={**self.state.held, **held},
            scenes=tuple(sorted({*self.state.scenes, *held})),
        )
        return range(first, first + len(conditions))

    # How far it is

    @property
    def next_chunk(self) -> int:
        """The chunk that is finished next."""
        return self.state.position.oldest(self.schedule)

    @property
    def done(self) -> bool:
        """All that is planned is clean."""
        return self.state.position.steps_planned(self.schedule) == 0

    @property
    def starved(self) -> bool:
        """The next stage would leave a window slot empty because no more chunks are planned."""
        return self.state.position.starved(self.schedule)

    @property
    def progress(self) -> Progress:
        position = self.state.position
        steps = {chunk: position.clock - chunk * self.schedule.stage_steps for chunk in self.state.in_flight}
        return Progress(position.steps_done, position.steps_done + position.steps_planned(self.schedule), steps)

    # Who does it

    def run_by(self, runner: Runner) -> None:
        """From the next step on, ``runner`` runs the model; what is remembered of earlier chunks goes there."""
        if self.state.cache is not None:
            held = KVCache.from_state(self.state.cache.state())
            self.state = replace(self.state, cache=runner.place(held))
        self.runner = runner

    # Kept for later

    def save(
        self, path: Path, *, notes: Mapping[str, str] | None = None, extra: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write a file from which ``load`` goes on to the same bits, with the caller's own texts and tensors beside. All or nothing."""
        names = ("sampling", "height", "width", "seed", "prefix_frames", "null", "noise", "state")
        stored = Stored(**{name: getattr(self, name) for name in names}, notes=notes or {}, extra=extra or {})
        write_session(path, stored, self.model)

    @classmethod
    def load(cls, path: Path, model: MagiDiT) -> tuple[Session, Mapping[str, str], Mapping[str, Tensor]]:
        """The session that ``save`` wrote, and the caller's texts and tensors; raises MagiError as ``read_session`` does."""
        stored = read_session(path, model)
        session = cls(
            model,
            stored.sampling,
            height=stored.height,
            width=stored.width,
            seed=stored.seed,
            null=stored.null,
            noise=stored.noise,
        )
        session.prefix_frames, session.state = stored.prefix_frames, stored.state
        return session, stored.notes, stored.extra

    # How it is done

    def _read_clean_chunks(self, state: SessionState) -> KVCache:
        """Keys and values of the clean chunks that the run depends on, one chunk after the other (spec 8.4.1)."""
        position, cache = state.position, self.runner.place(KVCache())
        first = self.schedule.first_prefix_chunk(position.offset, self.model.config.num_layers)
        read = self.schedule.first_read(position.offset, position.clock)
        length = prefix_kv_length(self.sampling)
        for chunk in range(first, position.offset):
            start, end = kv_chunks(chunk, length)
            self._remember(state.clean[chunk], chunk, (max(first, start), end), cache)
            cache.keep_from(min(read, kv_chunks(chunk + 1, length)[0]))
        return cache

    def _remember(self, clean: Tensor, place: int, seen: tuple[int, int], cache: KVCache) -> None:
        """Keys and values of a clean chunk [1, C, chunk_width, H, W] as number ``place``, where it sees the chunks ``seen``."""
        window = Window(
            x=clean,
            times=(self.sampling.clean_t,),
            text=(self.null,),
            null=self.null,
            first_chunk=place,
            kv_chunks=(seen,),
            step_embedding=self._step_embedding(self.schedule.intervals[0]),
        )
        self.runner.remember(self.model, self.sampling, window, cache)

    def _window(self, state: SessionState, now: Step, x: Tensor) -> Window:
        """The chunks in flight x, behind the chunk that has just become clean where there is one (spec 8.4.2)."""
        times = tuple(self.schedule.times[s] for s in now.steps)
        text = tuple(state.captions[chunk] for chunk in now.chunks)
        if now.extra:
            clean = self._input(state, now.chunks.start - 1)
            x, times, text = torch.cat([clean, x], dim=2), (self.sampling.clean_t, *times), (self.null, *text)
        return Window(
            x=x,
            times=times,
            text=text,
            null=self.null,
            first_chunk=now.chunks.start - now.extra,
            kv_chunks=now.kv_chunks,
            extra=now.extra,
            near_clean=now.near_clean,
            step_embedding=self._step_embedding(now.interval),
            write_chunks=int(now.extra),
        )

    def _foresee(self, stepped: SessionState, now: Step, x: Tensor, drain: bool) -> Foreseen | None:
        """The step after ``now``, which x goes into; None where none follows, only once more is planned, or once an anchor is remembered."""
        after, _ = self._after(stepped, now, x)
        position = after.position
        starved = position.starved(self.schedule)
        if not position.steps_left(self.schedule) or (starved and not drain):
            return None
        if starved:
            position = replace(position, drain_at=position.end)
        then = self.schedule.step(position.offset, position.end, position.clock, after.scenes)
        if then.anchor is not None:
            return None
        window = self._window(after, then, self._latents(after, then))
        chunks = range(window.first_chunk, then.chunks.stop)
        sources = [now.chunks.index(chunk) if chunk in now.chunks else None for chunk in chunks]
        return Foreseen(
            window,
            sources=tuple(None if i is None else i + now.extra for i in sources),
            sizes=tuple(0.0 if i is None else self.schedule.step_sizes[now.steps[i]] for i in sources),
            held=tuple(after.held[chunk].shape[2] if chunk in after.held else 0 for chunk in chunks),
        )

    def _after(self, state: SessionState, now: Step, x: Tensor) -> tuple[SessionState, FinishedChunk | None]:
        """Where x, of the chunks in flight, comes out of ``now``: take the leftmost one out if it is clean, let go of what no later step needs."""
        by_chunk = zip(now.chunks, torch.split(x, self.sampling.chunk_width, dim=2), strict=True)
        state = replace(state, in_flight=dict(by_chunk))
        leftmost, oldest = now.chunks.start, state.position.oldest(self.schedule)
        finished, clean = None, dict(state.clean)
        if oldest > leftmost:
            latents = state.in_flight[leftmost]
            skip = first_new_frame(leftmost, self.prefix_frames, self.sampling.chunk_width)
            finished = FinishedChunk(leftmost, latents[:, :, skip:].clone())
            shown = (state.held[leftmost][:, :, :skip], finished.latents) if skip else (finished.latents,)
            clean[leftmost] = torch.cat(shown, dim=2)
        kept = state.position.first_kept(self.schedule, self.model.config.num_layers)
        scenes = state.position.scenes_left(self.schedule, state.scenes)
        state = replace(
            state,
            captions=_from(oldest, state.captions),
            held=_from(oldest - 1, state.held),
            in_flight=_from(oldest, state.in_flight),
            clean={chunk: shown for chunk, shown in clean.items() if chunk >= kept or self._may_anchor(chunk, scenes)},
            scenes=scenes,
        )
        return state, finished

    def _may_anchor(self, chunk: int, scenes: Sequence[int]) -> bool:
        return self.sampling.anchor and chunk in scenes

    def _dry(self, state: SessionState) -> SessionState:
        """Where the run is over: the start of the next one, which reads the clean chunks as a new session reads its prefix."""
        position = state.position
        if position.steps_left(self.schedule) or position.offset == position.end:
            return state
        return replace(
            state, position=position.next_run(self.schedule), held=_from(position.end, state.held), cache=None
        )

    def _latents(self, state: SessionState, now: Step) -> Tensor:
        """The chunks in flight, as the model is shown them."""
        return torch.cat([self._input(state, chunk) for chunk in now.chunks], dim=2)

    def _input(self, state: SessionState, chunk: int) -> Tensor:
        """What the model is shown of a chunk: its latents, or noise, behind the frames that are held (spec 8.4.4)."""
        latents = state.in_flight.get(chunk, state.clean.get(chunk))
        if latents is None:
            latents = self._noise_of(chunk)
        held = state.held.get(chunk)
        return latents if held is None else torch.cat([held, latents[:, :, held.shape[2] :]], dim=2)

    def _noise_of(self, chunk: int) -> Tensor:
        width = self.sampling.chunk_width
        if self.noise is not None:
            return self.noise[:, :, chunk * width : (chunk + 1) * width]
        shape = (1, self.model.config.latent_channels, width, self.height, self.width)
        return chunk_noise(self.seed, chunk, shape).to(self.model.null_caption.device)

    def _step_embedding(self, interval: int) -> float | None:
        return step_embedding(self.sampling.num_steps, interval) if self.model.config.distill else None


def _from(first: int, by_chunk: Mapping[int, T]) -> dict[int, T]:
    """The entries of chunks from ``first`` on."""
    return {chunk: value for chunk, value in by_chunk.items() if chunk >= first}
