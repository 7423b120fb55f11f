"""A history of the model's own: near the true one, in the sequences that were drawn, and without a gradient of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from magi_core.presets import PRESETS
from magi_core.training.dataset import Mix
from magi_core.training.dit import DiTSettings, Drawn, train_dit
from magi_core.training.objective import LAYOUTS, squared_errors, velocities
from magi_core.training.own_history import TakenBack, denoised, draw_taken_back, with_own_history
from tests.training.test_objective import TINY, draw, random_clips, tiny_model

CLEAN = {name: layout for name, layout in LAYOUTS.items() if any(layout.clean)}


@pytest.mark.parametrize("name", CLEAN)
def test_only_the_history_of_the_drawn_sequences_changes(name: str) -> None:
    layout, model, (sample, noised) = LAYOUTS[name], tiny_model(), draw(name, 8)
    taken_back = draw_taken_back(layout, sample, 0.5, torch.Generator().manual_seed(1))
    assert taken_back is not None and 0 < len(taken_back.sequences) < 8
    own = with_own_history(model, layout, sample, noised, taken_back)
    moved = (own.x - noised.x).unflatten(2, (len(layout.clean), -1)).abs().amax((1, 3, 4, 5)) > 1e-3  # [N, D]
    drawn = torch.isin(torch.arange(8), taken_back.sequences)
    history = torch.tensor(layout.clean)
    history[0] &= not layout.anchored  # an anchor is what it shows
    assert torch.equal(moved, drawn[:, None] & history)
    assert own.target is noised.target and own.weight is noised.weight and own.t is noised.t


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_is_taken_back_without_a_share_or_a_clean_chunk(name: str) -> None:
    sample, _ = draw(name, 8)
    for share in (0.0, 1.0):
        taken_back = draw_taken_back(LAYOUTS[name], sample, share, torch.Generator())
        assert (taken_back is not None) == (share == 1.0 and name in CLEAN)


def test_the_gradient_is_that_of_a_history_given_from_outside() -> None:
    """Weights that were cast for the pass without gradient must still learn under autocast."""
    layout, model, (sample, noised) = LAYOUTS["behind"], tiny_model(), draw("behind", 4)
    taken_back = draw_taken_back(layout, sample, 1.0, torch.Generator().manual_seed(1))
    assert taken_back is not None
    given = with_own_history(model, layout, sample, noised, taken_back)

    def gradients(inside: bool) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            shown = with_own_history(model, layout, sample, noised, taken_back) if inside else given
            loss = squared_errors(velocities(model, layout, sample, shown.x, shown.t), shown).sum()
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    for inside, outside in zip(gradients(True), gradients(False), strict=True):
        assert (inside is None) == (outside is None)
        if inside is not None and outside is not None:
            torch.testing.assert_close(inside, outside)


def test_the_shipped_model_takes_a_second_back_and_gives_nearly_the_same() -> None:
    """What a second shows survives, so that the true next one can still be learnt; the later it is taken back, the nearer."""
    import magi_core
    from magi_core.training.shards import encode_windows
    from magi_core.vae import frames_to_video
    from magi_core.worlds.clips import Clip, Phase, render

    magi = magi_core.load("nano")
    clip = Clip("circle", 9.0, 0.7, "black", (30.0, 30.0), (Phase("red", "right"),))
    latents = encode_windows(magi.vae, frames_to_video(torch.from_numpy(render(clip))))[:, 0]
    noise = torch.randn(1, 1, *latents.shape[1:], generator=torch.Generator().manual_seed(0))
    distances = []
    for time in (0.0, 0.3, 0.6, 0.9):
        made = denoised(magi.dit, latents, TakenBack(torch.tensor([0]), torch.full((1, 1), time), noise))
        distances.append(float((made - latents).pow(2).mean().sqrt()))
    assert distances == sorted(distances, reverse=True) and distances[-1] > 0
    assert distances[1] < 0.5 * distances[0], distances


def test_training_draws_it_where_its_mix_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise and what is asked are those of a run without."""
    seen: list[Drawn] = []

    def watch(state: object, batches: list[Drawn], *rest: object) -> None:
        seen.extend(batches)
        raise KeyboardInterrupt

    monkeypatch.setattr("magi_core.training.dit.train_step", watch)
    settings = DiTSettings(steps=1, batch={"stream": 4})
    for share in (0.0, 1.0):
        with pytest.raises(KeyboardInterrupt):
            train_dit(TINY, random_clips(), tmp_path, replace(settings, mix=Mix(own_history=share)), lambda *_: None)
    without, with_it = seen
    assert without.taken_back is None and with_it.taken_back is not None
    assert torch.equal(without.noised.x, with_it.noised.x)
    assert PRESETS["nano"].dit.latent_channels == with_it.taken_back.noise.shape[2]
