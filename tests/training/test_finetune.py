"""Fine-tuning: sequences as the sampler reads, resumed to the bit, the same by one process and by two."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from magi_core.checkpoint.find import find_checkpoint
from magi_core.checkpoint.load import load_dit
from magi_core.cli import main
from magi_core.errors import MagiError
from magi_core.presets import PRESETS
from magi_core.training.finetune import FinetuneSettings, trainable
from magi_core.training.layouts import layouts_for
from magi_core.training.ranks import Ranks
from tests.training.spread import SETTINGS, learning_model, run
from tests.training.test_videos import write_video

ROOT = Path(__file__).parents[2]
ALONE = Ranks(0, 1, torch.device("cpu"))


def test_windows_read_what_the_sampler_lets_them() -> None:
    released = layouts_for(PRESETS["4.5b"].sampling, 9)
    assert released["stream"].reads == ((0, 1), (0, 2), (0, 3), (0, 4), (0, 5)), "each sees one clean chunk"
    assert released["start"].reads == ((0, 1), (0, 2), (0, 3), (0, 4))
    shorter = replace(PRESETS["nano"].sampling, noise2clean_kvrange=(2, 2, 2, 2))
    assert layouts_for(shorter, 9)["stream"].reads == ((0, 1), (0, 2), (1, 3), (2, 4), (3, 5))
    assert layouts_for(PRESETS["4.5b"].sampling, 2)["stream"].places == (0, 1)
    anchored = replace(PRESETS["4.5b"].sampling, anchor=True)
    behind = {longest: layouts_for(anchored, longest)["stream"] for longest in (2, 3, 4, 7)}
    assert behind[7].reads == ((0, 1), (1, 2), (0, 3), (0, 4), (0, 5), (0, 6)), "each sees the anchor too"
    assert [stream.shown for stream in behind.values()] == [(0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 2, 3, 4, 5, 6)]
    assert set(layouts_for(PRESETS["nano"].sampling, 1)) == {"first", "start"}


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "dit.jsonl").read_text().splitlines()]


def test_resumed_equals_unbroken_to_the_bit_and_recomputing_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", SETTINGS, ALONE)
    with monkeypatch.context() as patch:
        patch.setattr(
            "magi_core.training.finetune.progress", lambda state, s: 1.0 if state.step == 2 else state.step / 4
        )
        run(tmp_path / "parts", SETTINGS, ALONE)
    run(tmp_path / "parts", SETTINGS, ALONE)
    run(tmp_path / "recomputed", SETTINGS, ALONE, recompute=True)
    whole, parts, recomputed = (load_file(tmp_path / n / "dit.safetensors") for n in ("whole", "parts", "recomputed"))
    assert len(whole) > 300
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
        torch.testing.assert_close(value, recomputed[name], rtol=1e-5, atol=1e-6)
    start = learning_model().state_dict()
    assert all(
        not torch.equal(whole[f"model.{name}"], value) for name, value in start.items() if name.endswith("q.weight")
    )


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Two of torchrun, by copies and by shards (broken off and resumed), against one process with the same batch; the same of a LoRA.

    Left out are the norms of keys: a bias of keys moves all scores of a query alike where nothing is rotated, so its gradient is
    rounding alone, which Adam brings to the size of any other.
    """
    run(tmp_path / "one", SETTINGS, ALONE)
    run(tmp_path / "lora one", SETTINGS, ALONE, lora=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, "tests.training.spread", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert (tmp_path / "done").exists(), done.stderr[-3000:]
    for kind in ("", "lora "):
        one = load_file(tmp_path / f"{kind}one" / "dit.safetensors")
        learnt = [key for key in one if key.startswith(("model.", "ema.")) and "k_layernorm" not in key]
        assert all(key.split(".")[1] in ("up", "down") for key in learnt) == bool(kind)
        for name in (f"{kind}ddp", f"{kind}fsdp"):
            two = load_file(tmp_path / name / "dit.safetensors")
            assert two.keys() == one.keys()
            apart = {key: float((two[key] - one[key]).norm() / one[key].norm().clamp_min(1e-2)) for key in learnt}
            assert max(apart.values()) < 1e-5, (name, max(apart, key=apart.__getitem__), max(apart.values()))
        last, alone = (losses(tmp_path / f"{kind}{name}")[-1] | {"seconds": 0} for name in ("ddp", "one"))
        assert last == pytest.approx(alone, abs=2e-5)


def test_a_seed_may_be_as_large_as_a_video_s(tmp_path: Path) -> None:
    run(tmp_path, replace(SETTINGS, steps=1, seed=(1 << 63) - 1), ALONE)


def test_a_run_that_diverges_keeps_what_it_saved_and_goes_on_with_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, replace(SETTINGS, steps=1), ALONE)
    saved = (tmp_path / "dit.safetensors").read_bytes()
    with pytest.raises(MagiError, match=r"diverged at step \d.*a lower learning rate"):
        run(tmp_path, replace(SETTINGS, rate=1e30), ALONE)
    assert (tmp_path / "dit.safetensors").read_bytes() == saved
    with (tmp_path / "dit.jsonl").open("a") as log:
        log.write('{"step": 2, "loss": 1')  # what a process writes as it is killed
    run(tmp_path, SETTINGS, ALONE)
    assert [line["step"] for line in losses(tmp_path)] == [1, SETTINGS.steps]


def test_passes_must_be_shared_evenly(tmp_path: Path) -> None:
    with pytest.raises(MagiError, match="take a multiple of 3"):
        run(tmp_path, SETTINGS, Ranks(0, 3, torch.device("cpu")))
    with pytest.raises(MagiError, match="either steps or minutes"):
        FinetuneSettings()


def test_a_distilled_or_8_bit_model_is_refused() -> None:
    files = find_checkpoint("nano")
    distilled = PRESETS["4.5b-distill"]
    with pytest.raises(MagiError, match="distilled; train the base model"):
        trainable(replace(files, config=distilled), torch.device("cpu"))


def test_the_command_makes_a_model_folder_and_shows_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    videos, out = tmp_path / "videos", tmp_path / "tuned"
    videos.mkdir()
    for number in range(2):
        write_video(videos / f"{number}.mp4", 24 + 24 * number, "a square glides east\n\n", seed=number)
    command = ["finetune", str(videos), "-o", str(out), "--size", "32x32", "--batch", "2", "--passes", "1"]
    assert main([*command, "--steps", "2", "--samples", "1"]) == 0
    tuned, base = load_dit(out), load_dit("nano")
    moved = [name for name, value in tuned.state_dict().items() if not torch.equal(value, base.state_dict()[name])]
    assert len(moved) > 100
    files = find_checkpoint(out)
    assert files.missing == () and files.vae is not None and files.vae.resolve() == (out / "vae").resolve()
    stored = load_file(out / "inference_weight" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    with Image.open(out / "training" / "samples" / "step-000002.png") as sheet:
        assert np.asarray(sheet).std() > 0 and sheet.height < 200, "one sample"
    assert (out / "training" / "dit.png").exists()
    assert "is a model folder" in capsys.readouterr().out
    assert main([*command, "--batch", "3", "--passes", "2"]) == 2
    assert main(["finetune", str(videos), "-o", str(out), "--model", str(out), "--steps", "3"]) == 2
    assert "choose another one" in capsys.readouterr().err
    written = (out / "inference_weight" / "model.safetensors").read_bytes()
    assert main([*command, "--steps", "3", "--model", "nano-full"]) == 2
    assert "holds a run that was begun with model" in capsys.readouterr().err
    assert main(["distill", "-o", str(out), "--steps", "1"]) == 2
    assert "begun with command finetune instead of distill" in capsys.readouterr().err
    assert (out / "inference_weight" / "model.safetensors").read_bytes() == written
    assert main([*command, "--steps", "2", "--device", "gpu"]) == 2
    assert "--device is 'gpu'" in capsys.readouterr().err
