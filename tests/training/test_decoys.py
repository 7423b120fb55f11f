"""Decoys: only what they are to mislead with is changed, and it is never what is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from magi_core.checkpoint.find import find_checkpoint
from magi_core.errors import MagiError
from magi_core.parts import Parts
from magi_core.training.decoys import SECONDS, make_decoys, with_decoy
from magi_core.training.objective import ROLLOUT_HISTORY
from magi_core.training.shards import open_clips
from magi_core.worlds.clips import CHUNK_FRAMES, FULL, render, sample_clip


def test_the_end_of_the_history_alone_shows_something_else_in_the_same_place() -> None:
    middle = np.arange(64) + 0.5
    changed, moved = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        clip = sample_clip(FULL, SECONDS, rng)
        true, shown = render(clip), with_decoy(clip, FULL.shapes, rng)
        other = (true != shown).reshape(SECONDS, CHUNK_FRAMES, -1).any(2)
        assert (other.all(1) == other.any(1)).all(), "in whole seconds"
        seconds = other.any(1).nonzero()[0]
        assert seconds.tolist() == list(range(seconds[0], 1 + ROLLOUT_HISTORY)) and seconds[0] > 0
        changed.append(len(seconds))
        there = [(frames[seconds[0] * CHUNK_FRAMES] != frames[0, 0, 0]).any(2) for frames in (true, shown)]
        (x, y), (x2, y2) = (
            ((part * middle).sum() / part.sum(), (part.T * middle).sum() / part.sum()) for part in there
        )
        moved.append(np.hypot(x - x2, y - y2))
    assert set(changed) == set(range(1, 1 + ROLLOUT_HISTORY))
    assert np.median(moved) < 0.5 and max(moved) < 12, "only a larger one at a wall stands elsewhere"


def test_they_are_read_with_rollouts_and_kept_apart_from_clips(tmp_path: Path) -> None:
    magi = Parts(find_checkpoint("nano-full"))
    make_decoys(tmp_path / "decoys", magi.vae, "full", 2, 5)
    clips = open_clips([tmp_path / "decoys", tmp_path / "decoys"], magi)
    assert len(clips) == 4 and clips.lengths.tolist() == [SECONDS] * 4
    assert all(len(words) == SECONDS for wordings in clips.wording for words in wordings)
    with pytest.raises(MagiError, match="another seed"):
        make_decoys(tmp_path / "decoys", magi.vae, "full", 2, 6)
