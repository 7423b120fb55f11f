"""What a session promises: exact extension, resumption and memory, whatever the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise import ChunkCondition, FinishedChunk, Session, Window, dispatch, session
from magi_core.denoise.noise import chunk_noise
from magi_core.denoise.rewind import rewind
from magi_core.denoise.schedule import Schedule
from magi_core.errors import MagiError
from magi_core.model import KVCache, MagiDiT
from magi_core.text.assembly import null_caption
from magi_core.text.caption import Caption

WIDTH, SIZE, STEPS = 2, 4, 4
several = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    lengths = draw(st.sampled_from([0, 1, 2, 4]))
    return Sampling(
        num_steps=STEPS,
        window_size=draw(st.sampled_from([1, 2, 4])),
        chunk_width=WIDTH,
        cfg_number=draw(st.sampled_from([1, 3])),
        noise2clean_kvrange=tuple(draw(st.lists(st.integers(1, 5), min_size=lengths, max_size=lengths))),
        clean_chunk_kvrange=draw(st.sampled_from([-1, 1, 2, 3])),
        anchor=draw(st.booleans()),
    )


def condition(place: int, keyframe: bool = False) -> ChunkCondition:
    """A caption that belongs to the place in the plan; where asked, a keyframe too."""
    generator = torch.Generator().manual_seed(place)
    text = Caption(torch.randn(3, 4, generator=generator), torch.tensor([1, 1, place % 2]))
    return ChunkCondition(text, torch.randn(1, 2, 1, SIZE, SIZE, generator=generator) if keyframe else None)


def conditions(first: int, end: int) -> list[ChunkCondition]:
    return [condition(place, keyframe=place % 3 == 2) for place in range(first, end)]


@pytest.fixture
def start(tiny: MagiDiT, tiny_distilled: MagiDiT) -> Callable[..., Session]:
    def make(sampling: Sampling, prefix: Tensor | None = None) -> Session:
        model = tiny_distilled if sampling.cfg_number == 1 else tiny
        null = null_caption(model.null_caption)
        return Session(model, sampling, height=SIZE, width=SIZE, seed=7, null=null, prefix=prefix)

    return make


Start = Callable[..., Session]


def video(frames: int) -> Tensor:
    return torch.randn(1, 2, frames, SIZE, SIZE, generator=torch.Generator().manual_seed(frames))


def assert_same(one: Sequence[FinishedChunk], two: Sequence[FinishedChunk]) -> None:
    """To the bit."""
    assert [chunk.index for chunk in one] == [chunk.index for chunk in two]
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.latents, b.latents), a.index


prefixes = st.sampled_from([0, 1, 2, 3, 8, 13])


@several
@given(samplings(), prefixes, st.integers(1, 4), st.integers(1, 4))
def test_more_plan_before_a_slot_is_empty_is_as_if_planned_from_the_start(
    start: Start, sampling: Sampling, frames: int, now: int, later: int
) -> None:
    prefix = video(frames) if frames else None
    at_once = start(sampling, prefix)
    at_once.add(conditions(0, now + later))
    extended = start(sampling, prefix)
    extended.add(conditions(0, now))
    first = extended.run(drain=False)
    assert len(extended.state.in_flight) == min(now, sampling.window_size - 1)
    extended.add(conditions(now, now + later))
    assert_same(first + extended.run(), at_once.run())


@several
@given(samplings(), prefixes, st.integers(1, 7), st.integers(1, 3))
def test_a_dry_session_goes_on_as_a_continuation_of_its_video(
    start: Start, sampling: Sampling, frames: int, now: int, later: int
) -> None:
    """A keyframe's anchor aside, of which latents do not tell."""
    prefix = video(frames) if frames else None
    dry = start(sampling, prefix)
    dry.add([condition(place, keyframe=place % 3 == 2 and not sampling.anchor) for place in range(now)])
    shown = [chunk.latents for chunk in dry.run()]
    if prefix is not None and frames > 1:  # an image is part of what comes out, a clip is not
        shown.insert(0, prefix)
    continued = start(sampling, torch.cat(shown, dim=2))
    more = [condition(100 + i, keyframe=i == 1) for i in range(later)]
    assert dry.add(more) == continued.add(more)
    assert_same(dry.run(), continued.run())


@several
@given(samplings(), st.integers(1, 5))
def test_what_is_added_while_the_window_drains_waits_until_it_is_dry(
    start: Start, sampling: Sampling, now: int
) -> None:
    one, two = start(sampling), start(sampling)
    for made in (one, two):
        made.add(conditions(0, now))
    first = one.run()
    one.add(conditions(now, now + 2))
    second = two.run(drain=False)
    if not two.done:
        finished = two.step()
        second += [finished] if finished else []
    else:
        second += two.run()
    two.add(conditions(now, now + 2))
    assert_same(first + one.run(), second + two.run())


@several
@given(samplings(), prefixes, st.data())
def test_saved_and_loaded_after_any_step_it_ends_in_the_same_bits(
    start: Start, tmp_path: Path, sampling: Sampling, frames: int, data: st.DataObject
) -> None:
    prefix = video(frames) if frames else None
    straight, stopped = start(sampling, prefix), start(sampling, prefix)
    for made in (straight, stopped):
        made.add(conditions(0, 3))
    done = []
    for _ in range(data.draw(st.integers(0, stopped.progress.total), label="steps")):
        finished = stopped.step()
        done += [finished] if finished else []
    stopped.save(tmp_path / "session.safetensors", notes={"a": "b"}, extra={"c": torch.ones(2)})
    loaded, notes, extra = Session.load(tmp_path / "session.safetensors", stopped.model)
    assert notes == {"a": "b"} and extra["c"].tolist() == [1, 1]
    assert loaded.progress == stopped.progress
    first, last = straight.run(), done + loaded.run()
    assert_same(first, last)
    for made in (straight, loaded):
        made.add(conditions(3, 5))
    assert_same(straight.run(), loaded.run())


@several
@given(samplings())
def test_prefix_chunks_that_are_not_read_cannot_matter(start: Start, sampling: Sampling) -> None:
    trimmed = start(sampling, video(21))
    with patch.object(Schedule, "first_prefix_chunk", lambda self, offset, layers: 0):
        whole = start(sampling, video(21))
        whole.add(conditions(0, 2))
        expected = whole.run()
    trimmed.add(conditions(0, 2))
    assert_same(trimmed.run(), expected)


class FullCache(KVCache):
    """Forgets nothing."""

    def keep_from(self, chunk: int) -> None:
        pass


@several
@given(samplings(), prefixes)
def test_the_ring_gives_the_numbers_of_a_full_cache(start: Start, sampling: Sampling, frames: int) -> None:
    prefix = video(frames) if frames else None
    ring, full = start(sampling, prefix), start(sampling, prefix)
    for made in (ring, full):
        made.add(conditions(0, 5))
    with patch.object(session, "KVCache", FullCache):
        expected = full.run(drain=False)
    assert_same(ring.run(drain=False), expected)
    assert ring.state.cache is not None and full.state.cache is not None
    assert set(ring.state.cache.chunks) <= set(full.state.cache.chunks)


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize("clean_range", [1, 2])
def test_memory_does_not_grow_with_length(start: Start, clean_range: int, anchor: bool) -> None:
    sampling = Sampling(num_steps=4, window_size=2, chunk_width=WIDTH, clean_chunk_kvrange=clean_range, anchor=anchor)
    made = start(sampling)
    sizes = []
    for chunk in range(12):
        made.add([condition(chunk, keyframe=True)])
        made.run(drain=False)
        state = made.state
        assert state.cache is not None
        sizes.append(
            [len(kept) for kept in (state.captions, state.held, state.in_flight, state.clean, state.cache.chunks)]
        )
    assert sizes[7] == sizes[-1]
    assert sizes[-1][4] == 2 + anchor  # chunk 12 is next and sees 5: 8 and 9 are stored, 10 is just clean, 11 in flight


def naive(model: MagiDiT, sampling: Sampling, plan: Sequence[ChunkCondition]) -> list[Tensor]:
    """One chunk after the other; what is clean goes along in the first step of the next."""
    schedule, cache = Schedule.of(sampling), FullCache()
    null = null_caption(model.null_caption)
    done: list[Tensor] = []
    for chunk, wanted in enumerate(plan):
        x = chunk_noise(7, chunk, (1, 2, WIDTH, SIZE, SIZE))
        for step in range(sampling.num_steps):
            start, end = max(0, chunk + 1 - schedule.kv_lengths[step]), chunk + 1
            if chunk and step == 0:
                clean = (max(0, chunk - sampling.clean_chunk_kvrange), chunk)
                both = torch.cat([done[-1], x], dim=2)
                texts, times = (null, wanted.caption), (sampling.clean_t, 0.0)
                window = Window(both, times, texts, null, chunk - 1, (clean, (start, end)), extra=True, write_chunks=1)
            else:
                window = Window(x, (schedule.times[step],), (wanted.caption,), null, chunk, ((start, end),))
            velocity = dispatch(model, sampling, window, cache)[:, :, -WIDTH:]
            x = x + velocity * (torch.tensor(schedule.times[step + 1]) - torch.tensor(schedule.times[step]))
        done.append(x)
    return done


@several
@given(st.lists(st.integers(1, 4), min_size=2, max_size=2), st.integers(1, 3))
def test_a_window_of_one_is_chunk_by_chunk(start: Start, lengths: list[int], clean_range: int) -> None:
    sampling = Sampling(
        num_steps=4,
        window_size=1,
        chunk_width=WIDTH,
        noise2clean_kvrange=tuple(lengths),
        clean_chunk_kvrange=clean_range,
    )
    made = start(sampling)
    plan = [condition(chunk) for chunk in range(4)]
    made.add(plan)
    for chunk, expected in zip(made.run(), naive(made.model, sampling, plan), strict=True):
        torch.testing.assert_close(chunk.latents, expected, rtol=0, atol=1e-5)


@several
@given(st.integers(1, 4), st.sampled_from([1, 3]), st.sampled_from([6, 7, 10]))
def test_an_anchor_is_the_first_chunk_right_before_the_oldest_that_is_read(
    start: Start, length: int, cfg_number: int, given_chunks: int
) -> None:
    """As in a video that holds nothing else between them, of which one chunk more is read."""
    sampling = Sampling(num_steps=4, window_size=1, chunk_width=WIDTH, cfg_number=cfg_number)
    anchored = replace(sampling, noise2clean_kvrange=(length,), anchor=True)
    chunks = torch.split(video(given_chunks * WIDTH), WIDTH, dim=2)
    close = [chunks[0], *chunks[given_chunks - length + 1 :]]
    noise = torch.randn(1, 2, WIDTH, SIZE, SIZE)

    def made(sampling: Sampling, prefix: Sequence[Tensor]) -> Tensor:
        going_on = start(sampling, torch.cat(prefix, dim=2))
        going_on.noise = torch.cat([*prefix, noise], dim=2)
        going_on.add([condition(0)])
        (chunk,) = going_on.run()
        return chunk.latents

    expected = made(replace(sampling, noise2clean_kvrange=(length + 1,)), close)
    torch.testing.assert_close(made(anchored, chunks), expected, rtol=0, atol=1e-5)
    other = [chunks[0] + 1, *chunks[1:]]
    assert not torch.allclose(made(anchored, other), expected, atol=1e-3)


@several
@given(st.sampled_from([1, 2, 4]), st.integers(1, 6), st.integers(8, 12))
def test_a_keyframe_begins_a_scene_with_an_anchor_of_its_own(
    start: Start, window: int, keyframe: int, chunks: int
) -> None:
    """What is read of it is never another scene's; a scene that is still in sight needs none."""
    schedule = Schedule.of(Sampling(num_steps=4, window_size=window, chunk_width=WIDTH, anchor=True))
    shown = {0: 0}  # which is itself there
    for clock in range((chunks + window - 1) * schedule.stage_steps):
        step = schedule.step(0, chunks, clock, (0, keyframe))
        if step.anchor is not None:
            shown[step.anchor.place] = step.anchor.chunk
        first = schedule.first_read(0, clock)
        for chunk, (oldest, _) in zip(step.chunks, step.kv_chunks[step.extra :], strict=True):
            if oldest < first:
                assert shown[oldest] == (keyframe if chunk >= keyframe else 0) < first
            elif oldest == first > 0:
                assert first <= keyframe <= chunk
    assert keyframe in shown.values() or chunks <= keyframe + 6


@pytest.mark.parametrize("keyframe", [0, 1, 6])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_one_can_go_back_in_a_video_with_an_anchor(start: Start, window: int, keyframe: int) -> None:
    sampling = Sampling(num_steps=4, window_size=window, chunk_width=WIDTH, anchor=True)
    straight, gone_back = start(sampling), start(sampling)
    plan = [condition(place, keyframe=place == keyframe) for place in range(10)]
    straight.add(plan[:8])
    gone_back.add(plan)
    finished: dict[int, Tensor] = {}
    while len(finished) < 8:
        chunk = gone_back.step()
        finished |= {} if chunk is None else {chunk.index: chunk.latents}
    expected = straight.run()
    straight.add(plan[8:])
    rewind(gone_back, 8, finished.__getitem__)
    assert gone_back.state.scenes in ((keyframe,), (0, keyframe))
    assert gone_back.state.clean.keys() >= {*gone_back.state.scenes} and len(gone_back.state.clean) < 8
    for one, two in zip(expected, finished.values(), strict=True):
        torch.testing.assert_close(one.latents, two, rtol=0, atol=1e-5)
    for one, again in zip(straight.run(), gone_back.run(), strict=True):
        torch.testing.assert_close(one.latents, again.latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("anchor", [False, True])
def test_an_interrupted_step_changes_nothing(start: Start, anchor: bool) -> None:
    sampling = Sampling(num_steps=4, chunk_width=WIDTH, anchor=anchor)
    straight, interrupted = start(sampling, video(5)), start(sampling, video(5))
    for made in (straight, interrupted):
        made.add(conditions(0, 3))
    chunks, attend = [], interrupted.model.attend
    for step in range(interrupted.progress.total):
        calls = iter(range(step % 7))  # attention calls that succeed before the interrupt; a step has at least 12

        def unlucky(*arguments: Any, calls: Iterator[int] = calls) -> Tensor:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return attend(*arguments)

        before = interrupted.state
        with patch.object(interrupted.model, "attend", unlucky), pytest.raises(KeyboardInterrupt):
            interrupted.step()
        assert interrupted.state is before
        finished = interrupted.step()
        chunks += [finished] if finished else []
    assert_same(chunks, straight.run())


def test_noise_depends_on_seed_and_chunk_only() -> None:
    shape = (1, 2, WIDTH, SIZE, SIZE)
    assert torch.equal(chunk_noise(3, 5, shape), chunk_noise(3, 5, shape))
    assert not torch.equal(chunk_noise(3, 5, shape), chunk_noise(3, 6, shape))
    assert not torch.equal(chunk_noise(3, 5, shape), chunk_noise(4, 5, shape))


def test_progress_counts_every_step_once(start: Start) -> None:
    made = start(Sampling(num_steps=4, window_size=2, noise2clean_kvrange=(2, 1), chunk_width=WIDTH))
    made.add(conditions(0, 3))
    assert made.progress.total == 8 and made.progress.steps == 0
    made.step()
    assert made.progress.chunks == {0: 1}
    made.run()
    assert (made.progress.steps, made.progress.total, made.progress.chunks) == (8, 8, {})
    made.add(conditions(3, 4))
    assert made.progress.total == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 5}, "latent height is 5; it must be a multiple of 2, at least 4"),
        ({"seed": -1}, "seed is -1"),
        ({"prefix": torch.zeros(1, 2, 3, 4, 6)}, r"the prefix has the shape \[1, 2, 3, 4, 6\]"),
        ({"prefix": torch.full((1, 2, 3, 4, 4), float("nan"))}, "the prefix holds values that are not finite"),
        ({"null": Caption(torch.zeros(3, 5), torch.ones(3))}, "a caption is 5 wide, this model takes 4"),
    ],
)
def test_bad_input_is_refused(tiny: MagiDiT, change: dict[str, object], message: str) -> None:
    given = {"height": SIZE, "width": SIZE, "seed": 1, "null": null_caption(tiny.null_caption)}
    with pytest.raises(MagiError, match=message):
        Session(tiny, Sampling(chunk_width=WIDTH), **{**given, **change})


def test_a_bad_plan_is_refused_and_changes_nothing(start: Start) -> None:
    made = start(Sampling(chunk_width=WIDTH), video(3))
    before = made.state
    for plan, message in [
        ([condition(0, keyframe=True)], "chunk 1 already begins with 1 frames"),
        ([condition(0), ChunkCondition(condition(1).caption, video(2))], "the keyframe of chunk 2 has the shape"),
        ([ChunkCondition(Caption(torch.zeros(1, 5), torch.ones(1)))], "a caption is 5 wide"),
    ]:
        with pytest.raises(MagiError, match=message):
            made.add(plan)
    assert made.state is before
    with pytest.raises(MagiError, match="the plan is exhausted"):
        made.step()
