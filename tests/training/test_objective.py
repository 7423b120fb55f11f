"""The objective: what a chunk may read, where loss is counted, and that a small model learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from magi_core.denoise.schedule import ONE_SCENE, Schedule, kv_chunks, kv_lengths
from magi_core.kernels import AttnRange, attend
from magi_core.model import MagiDiT
from magi_core.presets import PRESETS
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import SpecialTokens
from magi_core.training.dataset import ClipSet, Mix, draw_sample
from magi_core.training.dit import initialise
from magi_core.training.objective import (
    CLEAN_T,
    LAYOUTS,
    Layout,
    Noised,
    Sample,
    add_noise,
    draw_times,
    schedule_time,
    squared_errors,
    velocities,
)
from magi_core.training.products import attend_products

TINY = replace(
    PRESETS["nano"].dit, num_layers=2, hidden_size=48, num_attention_heads=2, kv_channels=32, ffn_hidden_size=64
)


def random_clips(count: int = 12) -> ClipSet:
    """Clips of noise with captions of several lengths; every third one begins with a still image."""
    g = torch.Generator().manual_seed(0)
    lengths = [5, 9, 14, 30]
    captions = [Caption(torch.randn(n, 128, generator=g).half(), torch.ones(n, dtype=torch.bool)) for n in lengths]
    special = SpecialTokens(*(torch.randn(n, 128, generator=g) for n in (1, 1, 100)))
    latents = torch.randn(count, 7, 16, 6, 4, 4, generator=g).half()
    return ClipSet(
        latents, torch.arange(count) % 3 == 0, torch.randint(0, 4, (count, 2, 7), generator=g), captions, special
    )


def tiny_model() -> MagiDiT:
    torch.manual_seed(0)
    model = MagiDiT(TINY, attend=attend_products)
    initialise(model)
    torch.nn.init.normal_(model.final_linear.linear.weight, std=0.1)
    return model


def test_chunks_of_a_window_read_what_the_sampler_lets_them_at_every_time_that_is_drawn() -> None:
    sampling = PRESETS["nano"].sampling
    shown = Schedule.of(replace(sampling, anchor=True))
    lengths, borders = kv_lengths(sampling), schedule_time(torch.arange(1, sampling.num_steps) / sampling.num_steps)
    for name, layout in LAYOUTS.items():
        if layout.stagger is not None:
            times = draw_times(layout, 300, torch.Generator().manual_seed(0))
            for chunk, clean in enumerate(layout.clean):
                steps = set(torch.bucketize(times[:, chunk].contiguous(), borders, right=True).tolist())
                if clean:
                    continue
                for s in steps:
                    expected = kv_chunks(chunk, lengths[s])
                    if layout.anchored:
                        expected = behind_an_anchor(shown, layout, chunk, s)
                    assert layout.reads[chunk] == expected, (name, chunk, s)


def behind_an_anchor(schedule: Schedule, layout: Layout, chunk: int, done: int) -> tuple[int, int]:
    """What a session lets the chunk read with so many steps done, counted from the anchor, late in a video whose oldest noisy chunk is
    as many chunks away from what the last run made as the layout's."""
    first_noisy = layout.clean.index(False)
    offset = 20
    clock = (offset + chunk - first_noisy) * schedule.stage_steps + done
    step = schedule.step(offset, offset + len(layout.clean) - first_noisy, clock)
    anchor = schedule.anchor(offset, clock, ONE_SCENE)
    assert anchor is not None and anchor.chunk == 0
    start, end = step.kv_chunks[step.chunks.index(offset + chunk - first_noisy) + step.extra]
    return start - anchor.place, end - anchor.place


def errors(model: MagiDiT, layout: Layout, sample: Sample, noised: Noised) -> torch.Tensor:
    return squared_errors(velocities(model, layout, sample, noised.x, noised.t), noised)


def draw(name: str, count: int = 4, mix: Mix = Mix()) -> tuple[Sample, Noised]:
    generator = torch.Generator().manual_seed(3)
    sample = draw_sample(random_clips(), LAYOUTS[name], count, mix, generator)
    return sample, add_noise(sample, LAYOUTS[name], draw_times(LAYOUTS[name], count, generator), generator)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_chunk_depends_on_what_its_layout_says_and_on_nothing_later(name: str) -> None:
    layout, model = LAYOUTS[name], tiny_model()
    sample, noised = draw(name, 2)
    sample = replace(sample, pasted=torch.zeros_like(sample.pasted))
    noised = replace(noised, weight=torch.ones_like(noised.weight))
    before = errors(model, layout, sample, noised)
    for changed in range(len(layout.places)):
        x = noised.x.clone()
        x[:, :, changed * 6 : changed * 6 + 6] += 1
        moved = (errors(model, layout, sample, replace(noised, x=x)) - before).abs().sum(0) > 1e-4
        assert moved.tolist() == [changed in reach(layout, chunk) for chunk in range(len(layout.places))]


def reach(layout: Layout, chunk: int) -> set[int]:
    """The chunks that a chunk reads, and those that these have read."""
    direct = set(range(*layout.reads[chunk])) - {chunk}
    return {chunk}.union(*(reach(layout, other) for other in direct))


def test_given_frames_and_clean_chunks_carry_no_loss() -> None:
    sample, noised = draw("next", 32, Mix(prefix=1.0, scene=0.0))
    frames = noised.weight.reshape(32, 3, 6)
    assert (frames[:, 1] == 0).all()
    for n in range(32):
        for d in (0, 2):
            k = int(sample.pasted[n, d])
            assert k >= 1 and frames[n, d].tolist() == [0.0] * k + [1.0] * (6 - k)
            pasted = slice(d * 6, d * 6 + k)
            torch.testing.assert_close(noised.x[n, :, pasted], sample.latents[n, :, pasted])
    shared = ((noised.x - sample.latents).reshape(32, 16, 3, 6, 4, 4)[:, :, 1]).std()
    assert 0.01 < shared < 0.06  # up to 5 % noise in a clean chunk


def test_captions_of_clean_chunks_and_dropped_ones_are_null() -> None:
    sample, _ = draw("next", 64)
    assert sample.null[:, 1].all()
    assert 0 < sample.null[:, 0].float().mean() < 0.5
    assert (sample.null[:, 0] == sample.null[:, 2]).all()
    assert (sample.dropped[:, 0] == sample.null[:, 0]).all()
    assert 0.5 < sample.dropped[:, 1].float().mean() < 1
    assert not sample.text_mask[sample.null.flatten()].any()


def test_a_scene_change_pastes_one_frame_of_another_clips_beginning() -> None:
    sample, _ = draw("next", 16, Mix(scene=1.0))
    beginnings = random_clips().latents[:, 0].float()
    for n in range(16):
        assert sample.pasted[n].tolist() == [1, 0, 1]
        assert any(torch.equal(sample.latents[n, :, :6], clip) for clip in beginnings)


def test_times_cover_the_schedule_and_a_window_is_staggered_by_a_quarter_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    t = draw_times(LAYOUTS["first"], 20000, generator)
    assert 0.68 < (t < 0.3).float().mean() < 0.76
    assert (t < 0.0217).float().mean() > 0.04
    stream = draw_times(LAYOUTS["stream"], 100, generator)
    assert torch.allclose(stream[:, 0], torch.tensor(CLEAN_T))
    position = (3 * stream / (1 + 2 * stream)).sqrt()
    torch.testing.assert_close(position[:, 1] - position[:, 2], torch.full((100,), 0.25), atol=1e-5, rtol=0)


def test_equal_generators_draw_equal_batches() -> None:
    (one, noised_one), (two, noised_two) = draw("start"), draw("start")
    assert torch.equal(one.text, two.text) and torch.equal(noised_one.x, noised_two.x)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_loss_falls_on_one_batch(name: str) -> None:
    model = tiny_model()
    sample, noised = draw(name, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        squared = errors(model, LAYOUTS[name], sample, noised)
        loss = squared.sum() / noised.weight.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize(
    "reads", [[(0, 5), (5, 9), (9, 20), (20, 30)], [(0, 6), (0, 12), (12, 18), (6, 18)], [(0, 6)] * 4]
)
def test_products_equal_the_range_attention(reads: list[tuple[int, int]]) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, h, 8, generator=g) for n, h in ((24, 6), (30, 2), (30, 2)))
    ranges = [AttnRange(6 * i, 6 * i + 6, start, end) for i, (start, end) in enumerate(reads)]
    torch.testing.assert_close(attend_products(q, k, v, ranges), attend(q, k, v, ranges))
    with pytest.raises(ValueError, match="equal parts"):
        attend_products(q, k, v, ranges[:-1])
