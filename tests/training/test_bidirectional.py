"""The bidirectional variant: one noise level for all, everything reads everything, and the whole way from training to a table."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from magi_core.checkpoint.find import find_checkpoint
from magi_core.cli.commands import main
from magi_core.errors import MagiError
from magi_core.evaluation import physics_worlds
from magi_core.evaluation.physics_worlds import build_events
from magi_core.parts import Parts
from magi_core.training import bidirectional
from magi_core.training.bidirectional import LAYOUT, NAME, WEIGHTS_FILE, Bidirectional, train_bidirectional
from magi_core.training.bidirectional_sampler import bidirectional_of
from magi_core.training.objective import CLEAN_T, draw_times

NANO = Parts(find_checkpoint("nano"))
SMALLEST = Bidirectional(clips=2, dit=replace(Bidirectional().dit, steps=1, batch={NAME: 2}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("variant")
    train_bidirectional("nano", out, SMALLEST)
    return out


def test_the_chunks_that_are_made_share_one_time_and_all_read_all() -> None:
    times = draw_times(LAYOUT, 50, torch.Generator().manual_seed(0))
    assert (times[:, :3] == torch.tensor(CLEAN_T)).all() and (times[:, 3:] == times[:, 3:4]).all()
    assert len(times[:, 3].unique()) == 50
    assert LAYOUT.reads == ((0, 8),) * 8
    assert (bidirectional.GIVEN, bidirectional.PREDICTED) == (physics_worlds.GIVEN, physics_worlds.PREDICTED)


def test_later_prompts_change_earlier_seconds_and_given_frames_all_of_them(made: Path) -> None:
    generate = bidirectional_of(NANO, made / WEIGHTS_FILE, NANO.config.sampling.changed(steps=4))
    request = next(build_events("narrow", 1)).request
    told = replace(request, prompts=(*request.prompts[:4], "the circle turns yellow"))
    assert request.prefix is not None
    moved = replace(request, prefix=np.roll(request.prefix, 8, axis=1))
    first, again, later, other = generate([request, request, told, moved])
    assert first.shape == (120, 64, 64, 3) and (first == again).all()
    assert (first[:24] != later[:24]).any() and (first[:24] != other[:24]).any()
    with pytest.raises(MagiError, match="predicts 5 seconds from 3 given ones"):
        generate([replace(request, prompts=request.prompts[:4])])
    with pytest.raises(MagiError, match=r"no bidirectional variant of .*nano-full.*; make one with"):
        bidirectional_of(Parts(find_checkpoint("nano-full")), made / WEIGHTS_FILE, NANO.config.sampling)
    for wrong in (made, made / "nothing.safetensors"):
        with pytest.raises(
            MagiError, match=f"{re.escape(str(wrong))} is no safetensors file; magi train --bidirectional"
        ):
            bidirectional_of(NANO, wrong, NANO.config.sampling)
    with pytest.raises(MagiError, match=r"no bidirectional variant of .*; make one with"):
        bidirectional_of(NANO, NANO.files.dit / "model.safetensors", NANO.config.sampling)  # the model itself


def test_a_run_goes_on_and_one_of_another_model_is_refused(made: Path) -> None:
    before = (made / WEIGHTS_FILE).read_bytes()
    train_bidirectional("nano", made, SMALLEST)  # finished already
    assert (made / WEIGHTS_FILE).read_bytes() == before
    with pytest.raises(MagiError, match="was begun with"):
        train_bidirectional("nano-full", made, SMALLEST)
    assert not (made / "config.json").exists()  # no model folder: no other sampler fits


def test_the_commands(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed; pip install 'comfyui-magi[evaluation]'")
    assert main(["train", "--bidirectional", "-o", str(tmp_path)]) == 2
    assert "--start nano" in capsys.readouterr().err
    assert main(["train", "--bidirectional", "--start", "nano", "--sample-steps", "5", "-o", str(tmp_path)]) == 2
    assert "--sample" in capsys.readouterr().err
    asked = ["--bidirectional", str(made / WEIGHTS_FILE), "--count", "1", "--steps", "4", "-o", str(tmp_path)]
    assert main(["physics-worlds", *asked]) == 0
    scores = json.loads((tmp_path / "physics-worlds.json").read_text())
    assert {"continuation", "bidirectional", "bidirectional, slide"} <= scores["scores"].keys()
    assert scores["settings"]["bidirectional"] == str(made / WEIGHTS_FILE)
