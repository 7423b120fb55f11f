"""Distillation: the target is exact where it can be worked out, training shows what sampling shows, and a student learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import magi_core
from magi_core.checkpoint.find import find_checkpoint
from magi_core.checkpoint.load import load_dit
from magi_core.cli.commands import main
from magi_core.config import Sampling
from magi_core.denoise import ChunkCondition, Session, Window, dispatch
from magi_core.errors import MagiError
from magi_core.evaluation.generator import generator_of
from magi_core.evaluation.score import ScoreSettings, score
from magi_core.model import KVCache, MagiDiT
from magi_core.presets import PRESETS
from magi_core.text.assembly import null_caption
from magi_core.text.caption import Caption
from magi_core.training.checkpoint import TrainingState
from magi_core.training.dataset import Mix
from magi_core.training.distil import Distillation, distil, distil_dit, silence_step_sizes
from magi_core.training.dit import DiTSettings
from magi_core.training.objective import CLEAN_T, LAYOUTS, Layout, Noised, Sample, squared_errors, velocities
from magi_core.training.shortcut import (
    Shortcut,
    draw_shortcut,
    draw_steps,
    guided_velocity,
    self_consistent,
    shortcut_velocity,
    times_of,
    two_halves,
)
from tests.training.test_objective import TINY, random_clips, tiny_model

DISTILLED = replace(PRESETS["nano"].sampling, cfg_number=1, num_steps=8)
GUIDED = replace(PRESETS["nano"].sampling, num_steps=8, prev_chunk_scales=(1.5, 1.5, 1.25, 1.0, 1.0))
SMALL = Distillation(
    cycle=(16, 16, 8), dit=DiTSettings(steps=4, workers=1, batch={"first": 2, "next": 1, "stream": 1}, warmup_steps=1)
)
LENGTHS = (7, 12, 20)


def test_two_halves_of_a_linear_flow_are_the_whole_step() -> None:
    """x' = x + d v(x) with v(x, t) = a x + t b, by hand; frames that stay are the same in both halves."""
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(2, 3, 4, 1, 1, generator=generator, dtype=torch.float64) for _ in range(3))
    moves = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64).reshape(1, 1, 4, 1, 1)
    begin, middle, end = (torch.tensor([[t, 0.1 + t]], dtype=torch.float64).expand(2, 2) for t in (0.0, 0.05, 0.3))

    def velocity(x: Tensor, t: Tensor, num_steps: int) -> Tensor:
        assert num_steps == 16
        return a * x + t.repeat_interleave(2, dim=1).reshape(2, 1, 4, 1, 1) * b

    target = two_halves(velocity, x, moves, (begin, middle, end), 8)
    half = x + 0.05 * velocity(x, begin, 16) * moves
    torch.testing.assert_close(x + 0.3 * target * moves, half + 0.25 * velocity(half, middle, 16) * moves)


# ---- training shows what sampling shows --------------------------------------------------------------------------------


def films(model: MagiDiT, sampling: Sampling) -> Iterator[tuple[Window, Tensor]]:
    """The windows of a video of two chunks after a clean one, as training has them, and the velocities that the sampler finds."""
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randn(1, 16, 6, 4, 4, generator=generator)
    null = null_caption(model.null_caption.detach())
    session = Session(model, sampling, height=4, width=4, seed=5, null=null, prefix=prefix)
    session.add([ChunkCondition(Caption(torch.randn(n, 128, generator=generator), torch.ones(n))) for n in LENGTHS[1:]])
    seen: list[tuple[Window, Tensor]] = []

    def watch(model: MagiDiT, sampling: Sampling, window: Window, cache: KVCache) -> Tensor:
        velocity = dispatch(model, sampling, window, cache)
        seen.append((window if window.extra else with_past(window, clean[-1]), velocity))
        return velocity

    clean = [prefix]
    session.runner = replace(session.runner, dispatch=watch)
    for chunk in session.chunks():
        clean.append(chunk.latents)
    yield from seen


def with_past(window: Window, clean: Tensor) -> Window:
    """The window with the clean chunk that it reads from the cache in front of it, as training has it."""
    return replace(
        window,
        x=torch.cat([clean, window.x], dim=2),
        times=(CLEAN_T, *window.times),
        text=(window.null, *window.text),
    )


def as_training(window: Window) -> tuple[Layout, Sample]:
    """The layout of training that a window with its past in front has, and what its chunks are told."""
    layout = LAYOUTS["behind"] if len(window.times) == 3 else Layout((True, False), (0, 1), ((0, 1), (0, 2)))
    clean = torch.tensor([layout.clean])
    captions = [caption.compact().padded(60) for caption in window.text]
    text = torch.stack([caption.embedding for caption in captions])
    mask = torch.stack([caption.mask.bool() for caption in captions])
    return layout, Sample(window.x, torch.zeros_like(clean).long(), text, mask, clean, clean)


def distilled_tiny() -> MagiDiT:
    model = MagiDiT(replace(TINY, distill=True))
    model.load_state_dict(tiny_model().state_dict())
    return model.eval().requires_grad_(False)


def test_the_students_velocity_is_that_of_the_samplers_single_pass() -> None:
    model, kinds = distilled_tiny(), set()
    for window, velocity in films(model, DISTILLED):
        layout, sample = as_training(window)
        near = (1,) if window.near_clean else ()
        trained = shortcut_velocity(model, layout, near, sample, window.x, torch.tensor([window.times]), 8)[:, :, 6:]
        torch.testing.assert_close(trained, velocity[:, :, -trained.shape[2] :], atol=2e-5, rtol=1e-4)
        kinds.add((len(window.times), near))
    assert kinds == {(2, ()), (2, (1,)), (3, ()), (3, (1,))}


def test_the_target_is_where_two_finer_steps_of_the_sampler_lead() -> None:
    model = distilled_tiny()
    windows = [window for window, _ in films(model, replace(DISTILLED, num_steps=16))]
    checked = 0
    for clock, (now, later) in enumerate(zip(windows, windows[2:], strict=False)):
        if clock % 2 or len(now.times) != len(later.times) or not torch.equal(now.x[:, :, :6], later.x[:, :, :6]):
            continue
        layout, sample = as_training(now)
        steps = torch.tensor([[0, *steps_of(now)]]) // 2
        weight = torch.ones(1, 1, now.x.shape[2], 1, 1)
        weight[:, :, :6] = 0
        noised = Noised(now.x, torch.tensor([now.times]), now.x, weight)
        batch = Shortcut("", layout, sample, noised, 8, steps, (1,) if now.near_clean else ())
        target = self_consistent(model, model, DISTILLED, batch, sample, noised, 64)
        duration = (times_of(layout, steps + 1, 8) - times_of(layout, steps, 8)).repeat_interleave(6, dim=1)
        reached = now.x + target * duration[:, None, :, None, None]
        torch.testing.assert_close(reached, later.x, atol=2e-5, rtol=1e-4)
        checked += 1
    assert checked >= 6


def steps_of(window: Window) -> list[int]:
    """How many of 16 steps the chunks in flight have behind them."""
    times = times_of(Layout((False,), (0,), ((0, 1),)), torch.arange(16)[:, None], 16).flatten().tolist()
    return [times.index(t) for t in window.times[1:]]


def test_the_teachers_velocity_is_that_of_the_samplers_guidance() -> None:
    model = tiny_model().eval()
    for window, velocity in films(model, GUIDED):
        layout, sample = as_training(window)
        if window.write_chunks:  # while a cache entry is written, the pass with text reads it by another adaLN row
            continue
        taught = guided_velocity(model, GUIDED, layout, sample, window.x, torch.tensor([window.times]))
        torch.testing.assert_close(taught[:, :, 6:], velocity[:, :, -taught.shape[2] + 6 :], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("num_steps", [64, 8])
@pytest.mark.parametrize("name", LAYOUTS)
def test_steps_are_points_of_the_samplers_schedule(name: str, num_steps: int) -> None:
    layout, nearly = LAYOUTS[name], 0
    for seed in range(40):
        steps, near = draw_steps(layout, num_steps, 0.3, 5, torch.Generator().manual_seed(seed))
        assert ((steps >= 0) & (steps < num_steps)).all()
        leading = steps[:, next(c for c, clean in enumerate(layout.clean) if not clean)]
        if layout.stagger is not None:
            assert (steps[:, -2] - steps[:, -1] == num_steps // 4).all()
        if near:
            assert (leading >= 3 * num_steps // 4).all() and all(layout.reads[c] != (c, c + 1) for c in near)
            nearly += 1
        elif any(layout.clean):
            assert (leading < 3 * num_steps // 4).all()
    assert (nearly > 0) == any(layout.clean)


# ---- learning ----------------------------------------------------------------------------------------------------------


def test_a_student_begins_as_its_teacher_whatever_the_step_size() -> None:
    teacher = load_dit("nano", dtype=torch.float32)
    student = MagiDiT(replace(teacher.config, distill=True)).requires_grad_(False)
    student.load_state_dict(teacher.state_dict())
    silence_step_sizes(student, (64, 32, 16, 8))
    batch = shown("first", 8)
    told = replace(batch.sample, dropped=torch.zeros_like(batch.sample.dropped))
    expected = velocities(teacher, batch.layout, told, batch.noised.x, batch.noised.t)
    for count in (64, 32, 16, 8):
        found = shortcut_velocity(student, batch.layout, (), told, batch.noised.x, batch.noised.t, count)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def shown(name: str, num_steps: int) -> Shortcut:
    mix = Mix(null_caption=0.0, late_row=0.0)
    return draw_shortcut(random_clips(), LAYOUTS[name], 4, num_steps, mix, 0.3, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("num_steps", [16, 8])
def test_a_few_steps_bring_the_student_closer(num_steps: int) -> None:
    """To the teacher with the finest steps, to its own frozen half-steps with larger ones."""
    teacher, student = tiny_model().requires_grad_(False), distilled_tiny().requires_grad_(True)
    batch, frozen = shown("stream", num_steps), distilled_tiny()
    torch.nn.init.normal_(student.final_linear.linear.weight, std=0.1)  # not the teacher's any more
    target = self_consistent(teacher, frozen, GUIDED, batch, batch.sample, batch.noised, 16)
    noised = replace(batch.noised, target=target)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        velocity = shortcut_velocity(
            student, batch.layout, batch.near, batch.sample, noised.x, noised.t, batch.num_steps
        )
        loss = squared_errors(velocity, noised).sum() / noised.weight.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_resumed_equals_unbroken_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: str) -> Mapping[str, Tensor]:
        kept: list[Mapping[str, Tensor]] = []
        distil_dit(
            tiny_model(), GUIDED, random_clips(), tmp_path / folder, SMALL, lambda weights, step: kept.append(weights)
        )
        return kept[-1]

    def until_two(state: TrainingState, settings: DiTSettings) -> float:
        return 1.0 if state.step == 2 else state.step / 4

    whole = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr("magi_core.training.dit.progress", until_two)
        run("parts")
    resumed = run("parts")
    assert whole and all(torch.equal(value, resumed[name]) for name, value in whole.items())


# ---- the command's work, and what is shipped ---------------------------------------------------------------------------


def test_distil_finishes_a_model_folder_of_the_released_kind(tmp_path: Path) -> None:
    settings = replace(SMALL, clips=2, dit=replace(SMALL.dit, steps=1))
    distil("nano", tmp_path, settings)
    files = find_checkpoint(tmp_path)
    assert files.name == "nano-distilled" and files.dit == tmp_path / "inference_weight.distill" and not files.missing
    assert files.config.sampling == replace(PRESETS["nano"].sampling, cfg_number=1, num_steps=8)
    assert load_dit(files).config.distill
    with pytest.raises(MagiError, match="base model"):
        distil(tmp_path, tmp_path / "again", settings)
    with pytest.raises(MagiError, match="half of another"):
        Distillation(cycle=(64, 16))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--teacher", "nano-distilled"], "base model"),
        (["--steps", "0"], "above 0"),
        (["--clips", "nowhere"], "no training clips"),
    ],
)
def test_what_cannot_be_distilled_is_one_line(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", *given, "-o", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_shipped_student_does_as_told_in_one_pass_a_step() -> None:
    magi = magi_core.load("nano-distilled", device="cpu")
    assert find_checkpoint("nano-distilled").config == replace(
        PRESETS["nano-distilled"], load=".", vae_pretrained="vae", t5_pretrained="t5"
    )
    passes = []
    magi.dit.x_embedder.register_forward_pre_hook(lambda *_: passes.append(1))
    scores = score(generator_of(magi, magi.config.sampling), ScoreSettings(count=4, tasks=("text",), samples=0))
    assert len(passes) == 4 * (3 + 3) * 2  # videos, stages of a window of four over three chunks, steps of a stage
    assert min(scores.shares[0].colour.value, scores.shares[0].direction.value) >= 0.75
