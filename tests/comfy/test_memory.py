"""Weights under ComfyUI's care: loaded whole, in parts, streamed, let go of, always the same video; and videos that cannot fit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.comfy.graphs import denoise, extend, node, pictures, story, text_to_video
from tests.comfy.server import ROOT, Prompt, Refused, Server
from tests.comfy.test_nodes import frames

ONE = "1s: a red circle moves right"


@pytest.fixture(scope="module")
def report(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``inside.py`` saw."""
    base = tmp_path_factory.mktemp("inside")
    (base / "custom_nodes").mkdir()
    command = [server.python, Path(__file__).with_name("inside.py"), server.folder, base, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=base)
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert done.returncode == 0 and lines, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(lines[0].removeprefix("REPORT "))
    return seen


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_model_loaded_in_parts_is_the_same_model(report: dict[str, Any], precision: str) -> None:
    seen = report["partly"][precision]
    loaded = [step["loaded"] for step in seen["steps"]]
    assert loaded == sorted(loaded) and loaded[0] == 0 and loaded[-1] == seen["size"]
    assert [step["lowvram"] for step in seen["steps"]][:2] == [True, True] and not seen["steps"][-1]["lowvram"]
    assert all(step["same"] for step in seen["steps"]) and seen["after"]


def test_what_comfyui_does_not_bring_lies_on_the_device(report: dict[str, Any]) -> None:
    seen = report["placement"]
    assert 0 < seen["layers there"] < seen["layers"] and seen["others there"]


def test_comfyui_knows_the_models_size(report: dict[str, Any]) -> None:
    sizes = report["sizes"]
    assert sizes["auto"] == sizes["resident"] > 14_000_000
    assert sizes["bf16"] < 0.55 * sizes["auto"] and sizes["fp8"] < 0.65 * sizes["auto"]
    assert sizes["streamed"] < 0.1 * sizes["auto"], "layers that are streamed are no weights that ComfyUI may move"


def test_room_is_made_for_the_kv_cache_of_this_video(report: dict[str, Any]) -> None:
    small, large = report["small"], report["large"]
    assert large["kv_cache"] == 16 * small["kv_cache"] > 0
    assert large["told"] > large["kv_cache"] + small["told"]


def test_running_out_of_memory_says_what_needs_less(report: dict[str, Any]) -> None:
    assert "not enough memory" in report["out of memory"] and "what needs less: " in report["out of memory"]
    assert "256 x 256" in report["out of memory"]


def test_a_model_that_was_let_go_of_comes_back(report: dict[str, Any]) -> None:
    assert report["unloaded"] == {"listed": 1, "same": True}


def test_only_what_lies_in_the_folder_of_models_is_opened(report: dict[str, Any]) -> None:
    assert report["named"]["mine"] == "mine" and "is not in ComfyUI's folders magi" in report["named"]["elsewhere"]


def loaded(**inputs: Any) -> Prompt:
    prompt = {**text_to_video(ONE, on_repeat="start over"), **pictures("made")}
    prompt["model"]["inputs"] |= inputs
    return prompt


@pytest.fixture(scope="module")
def usual(server: Server) -> np.ndarray:
    return frames(server, server.run(loaded()))


@pytest.mark.parametrize("inputs", [{"weights": "resident"}, {"weights": "streamed"}, {"attention": "torch"}])
def test_wherever_the_weights_are_it_is_the_same_video(
    server: Server, usual: np.ndarray, inputs: dict[str, str]
) -> None:
    assert np.array_equal(frames(server, server.run(loaded(**inputs))), usual)


@pytest.mark.parametrize("inputs", [{"precision": "fp8"}, {"precision": "bf16"}, {"attention": "math"}])
def test_less_exact_numbers_make_nearly_the_same_video(
    server: Server, usual: np.ndarray, inputs: dict[str, str]
) -> None:
    """Of 255 levels; another seed's video is 20 levels away."""
    other = frames(server, server.run(loaded(**inputs)))
    assert np.abs(other.astype(int) - usual).mean() < 8


def test_a_streamed_session_goes_on_with_resident_weights(server: Server) -> None:
    anew = {"on_repeat": "start over"}
    parts = {**text_to_video("4s: a yellow triangle moves right", finish=False, **anew), **story(ONE, "next")}
    parts |= {"more": extend("next_said", session=["made", 1], **anew), **pictures("more")}
    whole = frames(server, server.run(parts))
    parts["model"]["inputs"]["weights"] = "streamed"
    parts["other"] = node("MagiLoadModel", model="magi-nano", precision="auto", attention="auto", weights="resident")
    parts["more"]["inputs"]["model"] = ["other", 0]
    assert np.array_equal(frames(server, server.run(parts)), whole)


def test_memory_given_back_between_two_prompts(server: Server, usual: np.ndarray) -> None:
    for released in ({"unload_models": True}, {"unload_models": True, "free_memory": True}):
        server.post("free", released)
        prompt = loaded()
        prompt["made"] = denoise(more_to_come=1, on_repeat="start over")  # not from the cache of results
        prompt["model"]["inputs"]["weights"] = "auto"
        assert np.array_equal(frames(server, server.run(prompt)), usual)


def test_a_kernel_that_this_machine_cannot_run(server: Server) -> None:
    with pytest.raises(Refused) as refused:
        server.run(loaded(attention="flash_attn_2"))
    assert "'flash_attn_2' cannot run on cpu" in refused.value.reasons and "Usable here: auto" in refused.value.reasons


def test_a_video_that_cannot_fit_is_refused_with_one_that_does(server: Server) -> None:
    prompt = loaded()
    prompt["made"] = denoise(width=8192, height=8192, steps=16, window=16)
    error = server.run(prompt).error or ""
    assert "8192 x 8192" in error and "what would fit: " in error, error
