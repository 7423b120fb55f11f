"""Rollouts: what a target is, that the model's own seconds are never one, and the whole way from a model to a training run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import magi_core
from magi_core.checkpoint.find import find_checkpoint
from magi_core.cli import main
from magi_core.errors import MagiError
from magi_core.evaluation.tracker import track
from magi_core.parts import Parts
from magi_core.training import rollouts
from magi_core.training.dataset import ClipSet, Mix, draw_sample
from magi_core.training.dit import DiTSettings, draw_batch
from magi_core.training.objective import LAYOUTS, ROLLOUT_HISTORY, ROLLOUTS, draw_times, schedule_time
from magi_core.training.rollouts import Rollout, continued, is_what_was_asked, make_rollouts, make_video
from magi_core.training.train import RECIPES, Training, gone_on, train
from magi_core.worlds.clips import CHUNK_FRAMES, Clip, Phase, render, simulate
from tests.training.test_objective import random_clips

pytest.importorskip("cv2", reason="OpenCV is not installed; pip install 'comfyui-magi[evaluation]'")

STORY = Clip("square", 9.0, 0.7, "black", (30.0, 24.0), (Phase("red", "left"), *(Phase("red", "right"),) * 8))


def rollout_of(story: Clip, shown: Clip) -> Rollout:
    """As if the model had shown another clip than was asked."""
    return Rollout(story, (), torch.empty(0), track(render(shown), shown.background))


@pytest.mark.parametrize("name", ROLLOUTS)
def test_the_first_true_second_is_asked_at_its_stage_and_no_own_one_is(name: str) -> None:
    layout, stage, numbered = ROLLOUTS[name], int(name[-1]), random_clips()
    places = torch.arange(1 + 2 * ROLLOUT_HISTORY).view(-1, 1, 1, 1, 1).expand(-1, 16, 6, 4, 4)
    clips = ClipSet([places] * 5, torch.zeros(5).bool(), numbered.wording[:5].repeat(1, 1, 2), numbered.captions, None)
    sample = draw_sample(clips, layout, 6, Mix(), torch.Generator().manual_seed(0))
    shown = sample.latents[:, 0, ::6, 0, 0]
    assert shown.tolist() == [[0, *range(1 + stage, 6 + stage)]] * 6, (
        "the anchor, and a window from the rollout's first second on"
    )
    assert shown[0, layout.own] == 1 + ROLLOUT_HISTORY, "the first that is not of the model's own"
    batch = draw_batch(clips, name, layout, 6, Mix(prefix=0.0, own_history=1.0), torch.Generator().manual_seed(0))
    asked = batch.noised.weight.reshape(6, len(layout.clean), -1).amax(2)
    assert batch.taken_back is None
    assert torch.equal(asked, (torch.arange(len(layout.clean)) >= layout.own).float().expand(6, -1))
    times = draw_times(layout, 200, torch.Generator().manual_seed(0))[:, layout.own]
    low, high = schedule_time(torch.tensor([stage / 4, (stage + 1) / 4]))
    assert bool(((times >= low - 1e-6) & (times <= high + 1e-6)).all())


def test_a_target_goes_on_from_where_the_object_was_found_and_looks_as_was_asked() -> None:
    shown = replace(STORY, radius=7.0, start=(26.0, 30.0))
    clip = continued(rollout_of(STORY, shown), 2)
    assert clip is not None and (clip.shape, clip.radius, clip.speed) == ("square", 9.0, 0.7)
    path = simulate(clip)[CHUNK_FRAMES:]
    truth = simulate(shown)[2 * CHUNK_FRAMES :]
    inside = truth[: len(path), 0] < 54  # a bigger square stands at the wall earlier
    assert inside.sum() > 5 and np.abs(path - truth[: len(path)])[inside].max() < 0.3


def test_a_bounce_goes_on_as_it_was_seen_to_fly_and_a_fall_is_left_out() -> None:
    story = replace(STORY, phases=(Phase("red", "bounce", 0.3),) * 9)
    shown = replace(story, phases=(Phase("red", "bounce", 2.1),) * 9)
    clip = continued(rollout_of(story, shown), 1)
    assert clip is not None
    distance = np.linalg.norm(
        simulate(clip)[CHUNK_FRAMES : 2 * CHUNK_FRAMES] - simulate(shown)[CHUNK_FRAMES : 2 * CHUNK_FRAMES], axis=1
    )
    assert distance.max() < 2.0
    falling = replace(STORY, phases=(Phase("red", "fall"),) * 9)
    assert continued(rollout_of(falling, falling), 1) is None
    begins = replace(falling, phases=(Phase("red", "still"), *falling.phases[1:]))
    assert continued(rollout_of(begins, begins), 1) is not None


def test_a_video_that_does_not_begin_as_asked_is_left_out() -> None:
    assert is_what_was_asked(rollout_of(STORY, STORY), "full")
    assert not is_what_was_asked(rollout_of(STORY, replace(STORY, radius=12.0)), "full")
    assert not is_what_was_asked(rollout_of(STORY, replace(STORY, shape="star")), "full")


def test_a_model_makes_its_rollouts_and_goes_on_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "SECONDS", 6)
    dit = DiTSettings(steps=1, batch={"rollout 0": 1, "rollout 3": 1, "first": 1}, keep_steps=0)
    settings = Training(world="full", clips=2, chunks=7, start="nano-full", rollouts=3, dit=dit)
    train(tmp_path, settings)
    (shard,) = (tmp_path / "training" / "rollouts").iterdir()
    before = shard.read_bytes()
    magi = Parts(find_checkpoint("nano-full"))
    make_rollouts(shard.parent, magi, "full", 3, dit.seed)
    assert shard.read_bytes() == before
    with pytest.raises(MagiError, match="another seed"):
        make_rollouts(shard.parent, magi, "full", 3, dit.seed + 1)
    with pytest.raises(MagiError, match="begun with command train with 3 rollouts instead of train"):
        train(tmp_path, replace(settings, rollouts=0))


def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "-o", str(tmp_path / "out"), "--rollouts"]
    for said, words in (
        (["5"], "--start nano-full"),
        (["5", "--start", "nano"], "no anchor"),
        (["-1", "--start", "nano-full"], "rollouts is -1"),
        (["5", "--start", "nano-full", "--bidirectional"], "leave them or --bidirectional out"),
        (["0", "--start", "nano-full", "--bidirectional", "--blend", "0.5"], "leave it or --bidirectional out"),
    ):
        assert main([*asked, *said]) != 0
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(MagiError, match="give start"):
        Training(rollouts=1)
    with pytest.raises(MagiError, match="needs rollouts"):
        train(tmp_path, Training(clips=2, start="nano", dit=DiTSettings(steps=1, batch={"rollout 0": 1})))


@pytest.mark.parametrize("world", RECIPES)
def test_the_clips_of_every_recipe_are_long_enough_behind_rollouts(world: str) -> None:
    settings = gone_on(RECIPES[world], "nano-full", rollouts=5)
    shown = [max(LAYOUTS[name].shown) for name in settings.dit.batch if name in LAYOUTS]
    assert settings.chunks > max(shown) and settings.rollouts == 5 and ROLLOUTS.keys() <= settings.dit.batch.keys()


def test_a_rollout_is_the_video_that_generate_makes() -> None:
    magi, prompts = magi_core.load("nano"), ["a red circle moves right", "it stops"]
    frames = [chunk.latents for chunk in magi.generate("\n".join(f"1s: {prompt}" for prompt in prompts), seed=3)]
    assert torch.equal(make_video(magi, prompts, 3), torch.cat(frames))
