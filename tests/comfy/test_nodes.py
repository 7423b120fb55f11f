"""The pack in a running ComfyUI: its nodes are there, make videos, go on with them, stop and stay healthy."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.comfy.graphs import STORY, denoise, extend, loaders, node, pictures, show, story, text_to_video
from tests.comfy.server import ROOT, Prompt, Run, Server

NODES = {
    *("MagiLoadModel", "MagiLoadTextEncoder", "MagiLoadVAE", "MagiShot", "MagiStoryboard", "MagiKeyframe", "MagiPlan"),
    *("MagiEncodeStoryboard", "MagiChunkDenoise", "MagiExtendVideo", "MagiDecodeVideo", "MagiSaveSession"),
    *("MagiLoadSession", "MagiVideo", "MagiDevices", "MagiLora"),
}
FOUR = "4s: a yellow triangle moves right"
"""As many chunks as the window is wide: an extension goes on in flight."""


@pytest.fixture(scope="session")
def info(server: Server) -> dict[str, Any]:
    nodes = server.get("object_info")
    return {name: node for name, node in nodes.items() if name.startswith("Magi")}


def inputs(described: dict[str, Any]) -> dict[str, list[Any]]:
    """A node's inputs by name: [type, options]."""
    return {**described["input"].get("required", {}), **described["input"].get("optional", {})}


def frames(server: Server, run: Run, name: str = "pictures") -> np.ndarray:
    """The PNGs of an output node, uint8 [T, H, W, 3]."""
    assert run.status == "success", run.error
    return np.stack([np.asarray(Image.open(io.BytesIO(server.view(file)))) for file in run.files(name)])


def test_all_nodes_are_there_with_a_tooltip_on_every_input(info: dict[str, Any]) -> None:
    assert info.keys() == NODES
    for name, described in info.items():
        assert described["category"] == "MAGI" and described["description"], name
        for key, (_, options) in inputs(described).items():
            assert len(options.get("tooltip", "")) > 10, (name, key)


def test_comfyuis_own_nodes_are_not_hidden(server: Server) -> None:
    assert "KSampler" in server.get("object_info")
    assert "IMPORT FAILED" not in server.log.read_text()


def test_models_below_the_magi_folder_are_offered(info: dict[str, Any]) -> None:
    offered = {name: info[name]["input"]["required"][key][1]["options"] for name, key in LOADED.items()}
    assert all(names[:3] == ["magi-nano", "magi-nano-distilled", "magi-nano-full"] for names in offered.values())
    assert {"magi/mine/inference_weight", "corrupt.safetensors"} <= set(offered["MagiLoadModel"])
    assert {"magi/mine/t5", "magi/mine/inference_weight"} <= set(offered["MagiLoadTextEncoder"])
    assert {"magi/mine/vae", "magi/mine/inference_weight"} <= set(offered["MagiLoadVAE"])
    assert "corrupt.safetensors" not in offered["MagiVideo"]


LOADED = {"MagiLoadModel": "model", "MagiLoadTextEncoder": "text_encoder", "MagiLoadVAE": "vae", "MagiVideo": "model"}


def test_text_to_video_counts_every_step(server: Server) -> None:
    run = server.run({**text_to_video(seed=1), **show("made")})
    assert run.status == "success", run.error
    assert b"ftyp" in server.view(run.files("shown")[0])[:12]
    steps = run.progress("made")
    assert steps[-1] == (5, 5), "2 chunks of 4 steps, a window of 4: 4 + 1"
    assert any("left" in text for text in run.texts)


def test_the_same_seed_is_the_same_video_and_another_is_not(server: Server) -> None:
    first = frames(server, server.run({**text_to_video(seed=2), **pictures("made")}))
    server.post("free", {"unload_models": True, "free_memory": True})
    again = frames(server, server.run({**text_to_video(seed=2, on_repeat="start over"), **pictures("made")}))
    other = frames(server, server.run({**text_to_video(seed=3), **pictures("made")}))
    assert first.shape == (48, 64, 64, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_downloaded_checkpoint_gives_the_same_video(server: Server) -> None:
    prompt = {**text_to_video("1s: a red circle moves right", on_repeat="start over"), **pictures("made")}
    nano = frames(server, server.run(prompt))
    prompt["model"]["inputs"]["model"] = "magi/mine/inference_weight"
    prompt["clip"]["inputs"]["text_encoder"] = "magi/mine/t5"
    prompt["vae"]["inputs"]["vae"] = "magi/mine/inference_weight"
    assert np.array_equal(frames(server, server.run(prompt)), nano)


def test_extra_model_paths_are_honoured(server: Server, info: dict[str, Any]) -> None:
    """A checkpoint folder and a single file elsewhere, named in extra_model_paths.yaml."""
    place, file = "magi/there/inference_weight", "one_file.safetensors"
    for name, key in LOADED.items():
        assert place in info[name]["input"]["required"][key][1]["options"], name
    assert file in info["MagiLoadModel"]["input"]["required"]["model"][1]["options"]
    prompt = {**text_to_video("1s: a red circle moves right", on_repeat="start over"), **pictures("made")}
    nano = frames(server, server.run(prompt))
    prompt["clip"]["inputs"]["text_encoder"] = prompt["vae"]["inputs"]["vae"] = place
    for model in (place, file):
        prompt["model"]["inputs"]["model"] = model
        assert np.array_equal(frames(server, server.run(prompt)), nano)


def picture(name: str = "red.png") -> Prompt:
    return {"picture": node("LoadImage", image=name)}


@pytest.mark.parametrize("name", ["red.png", "größe 图.png"])
def test_image_to_video_starts_from_the_image(server: Server, name: str) -> None:
    made = denoise(vae=["vae", 0], start_image=["picture", 0])
    prompt = {**loaders(), **story("1s: it moves right"), **picture(name), "made": made, **pictures("made")}
    first = frames(server, server.run(prompt))[0].astype(int).mean((0, 1))
    channel = 0 if name == "red.png" else 2
    assert first[channel] > 150 and first[2 - channel] < 100


def test_keyframes_and_plan(server: Server) -> None:
    shots: Prompt = {
        "one": node("MagiShot", prompt="a", seconds=1.0),
        "story": node("MagiShot", prompt="b", seconds=1.0, storyboard=["one", 0], keyframe=["picture", 0]),
        "marked": node("MagiKeyframe", storyboard=["story", 0], image=["picture", 0], second=0.0),
        "plan": node("MagiPlan", storyboard=["marked", 0], fps=24.0),
    }
    run = server.run({**picture(), **shots})
    assert run.status == "success", run.error
    (table,) = run.history["outputs"]["plan"]["text"]
    assert "2 chunks, 48 frames" in table and table.count("connected image") == 2
    assert len(run.files("plan")) == 1
    said = story("")["story_said"]
    said["inputs"]["storyboard"] = ["marked", 0]
    made = denoise(vae=["vae", 0])
    prompt = {**loaders(), **picture(), **shots, "story_said": said, "made": made, **pictures("made")}
    shown = frames(server, server.run(prompt))
    assert min(shown[0, ..., 0].mean(), shown[24, ..., 0].mean()) > 150


def test_an_extension_in_flight_equals_one_go(server: Server) -> None:
    whole = frames(server, server.run({**text_to_video(f"{FOUR}\n2s: it moves up"), **pictures("made")}))
    prompt = {**text_to_video(FOUR, finish=False), **story("2s: it moves up", "next")}
    prompt |= {"more": extend("next_said", session=["made", 1]), **pictures("made", "a"), **pictures("more", "b")}
    run = server.run(prompt)
    assert np.array_equal(np.concatenate([frames(server, run, "a"), frames(server, run, "b")]), whole)


def test_a_saved_session_goes_on_like_latents_and_again(server: Server) -> None:
    prompt = {**text_to_video(FOUR), **story("1s: it moves up", "next")}
    prompt["saved"] = node("MagiSaveSession", session=["made", 1], filename_prefix="sessions/größe")
    run = server.run(prompt)
    assert run.status == "success", run.error
    (file,) = run.history["outputs"]["saved"]["sessions"]
    loaded = node("MagiLoadSession", session=f"{file['subfolder']}/{file['filename']} [output]")
    again = {**loaders(), **story("1s: it moves up", "next"), "loaded": loaded}
    again |= {"more": extend("next_said", session=["loaded", 0]), **pictures("more")}
    first = frames(server, server.run(again))
    prefix = {**prompt, "more": denoise("next_said", start_latent=["made", 0]), **pictures("more")}
    assert np.array_equal(frames(server, server.run(prefix)), first)
    again["more"]["inputs"]["seed"] = 99  # runs it again; a session keeps its own seed
    assert np.array_equal(frames(server, server.run(again)), first)


@pytest.mark.parametrize("source", ["latent", "images", "video"])
def test_any_video_can_be_continued(server: Server, source: str) -> None:
    prompt = {**text_to_video("1s: a red circle moves right"), **show("made"), **story("1s: it moves up", "next")}
    link = {"latent": ["made", 0], "images": ["shown_images", 0], "video": ["shown_video", 0]}[source]
    prompt |= {"more": extend("next_said", vae=["vae", 0], **{source: link}), **pictures("more")}
    assert frames(server, server.run(prompt)).shape == (24, 64, 64, 3)


def test_sigmas_of_a_flow_scheduler_set_the_steps(server: Server) -> None:
    settings = {"max_shift": 2.05, "base_shift": 0.95, "stretch": True, "terminal": 0.1}
    prompt = {**text_to_video("1s: a red circle moves right"), "sigmas": node("LTXVScheduler", steps=8, **settings)}
    own = frames(server, server.run({**prompt, **pictures("made")}))
    prompt["made"] = denoise(steps=0, sigmas=["sigmas", 0])
    run = server.run({**prompt, **pictures("made")})
    assert run.status == "success", run.error
    assert run.progress("made")[-1] == (8, 8)
    assert frames(server, run).shape == own.shape and not np.array_equal(frames(server, run), own)


def test_an_extension_of_any_video_has_its_own_settings(server: Server) -> None:
    prompt = {**text_to_video("1s: a red circle moves right"), **story("1s: it moves up", "next")}
    for steps in (4, 12):
        prompt["more"] = extend("next_said", latent=["made", 0], steps=steps, window=2, guidance=1.5, kv_ranges="3,2")
        run = server.run({**prompt, **pictures("more")})
        assert run.status == "success", run.error
        assert run.progress("more")[-1] == (steps, steps)


def test_history_guidance_strengthens_what_the_second_before_shows(server: Server) -> None:
    """The first second has none before it; a session keeps its own, as every setting."""
    prompt = {**text_to_video("1s: a red circle moves right\n1s: it moves up"), **pictures("made")}
    own = frames(server, server.run(prompt))
    prompt["made"] = denoise(history_guidance=6.0)
    firmer = frames(server, server.run(prompt))
    assert np.array_equal(firmer[:24], own[:24]) and not np.array_equal(firmer[24:], own[24:])
    prompt |= {**story("1s: it moves left", "next"), **pictures("more")}
    prompt["more"] = extend("next_said", session=["made", 1], history_guidance=2.0)
    run = server.run(prompt)
    assert "history_guidance is 2.0, but a session keeps the settings" in run.error


def test_an_anchor_keeps_the_first_second_in_sight(server: Server) -> None:
    """From the third second on, the first that would not see it; a session keeps its own."""
    prompt = {**text_to_video("3s: a red circle moves right"), **pictures("made")}
    own = frames(server, server.run(prompt))
    for anchor in ("off", "on"):
        prompt["made"] = denoise(anchor=anchor)
        found = frames(server, server.run(prompt))
        assert np.array_equal(found[:48], own[:48])
        assert np.array_equal(found, own) == (anchor == "off")
    prompt |= {**story("1s: it moves left", "next"), **pictures("more")}
    prompt["more"] = extend("next_said", session=["made", 1], anchor="off")
    run = server.run(prompt)
    assert "anchor is 'off', but a session keeps the settings" in run.error


@pytest.mark.parametrize("model", ["magi-nano", "magi-nano-distilled", "magi-nano-full"])
def test_the_easy_node_and_going_on_with_it(server: Server, model: str) -> None:
    box = {"model": model, "width": 64, "height": 64, "seed": 5}
    prompt: Prompt = {
        "one": node("MagiVideo", storyboard="1s: a red circle moves right", **box),
        "two": node("MagiVideo", storyboard="1s: it moves up", session=["one", 2], **box),
        "shown": node("SaveVideo", video=["two", 0], filename_prefix="test/box", format="auto", codec="auto"),
        "last": node("SaveImage", images=["two", 1], filename_prefix="test/last"),
    }
    run = server.run(prompt)
    assert run.status == "success", run.error
    assert len(run.files("shown")) == len(run.files("last")) == 1


def test_core_nodes_take_our_vae_and_text_encoder(server: Server) -> None:
    prompt = {**loaders(), **picture(), "text": node("CLIPTextEncode", text="a red circle", clip=["clip", 0])}
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    prompt |= {
        "in": node("VAEEncode", pixels=["picture", 0], vae=["vae", 0]),
        "in_tiled": node("VAEEncodeTiled", pixels=["picture", 0], vae=["vae", 0], **tiles),
        "out": node("VAEDecodeTiled", samples=["in_tiled", 0], vae=["vae", 0], **tiles),
        "tiled": node("SaveImage", images=["out", 0], filename_prefix="test/tiled"),
        **pictures("in"),
    }
    run = server.run(prompt)
    plain, tiled = frames(server, run), frames(server, run, "tiled")
    assert plain.shape == tiled.shape == (4, 48, 80, 3)
    assert plain[0, ..., 0].mean() > 150


def test_interrupt_and_the_server_stays_healthy(server: Server) -> None:
    stopped: list[int] = []

    def stop(run: Run) -> None:
        if run.progress("made") and not stopped:
            stopped.append(run.progress("made")[-1][0])
            server.post("interrupt", {"prompt_id": run.prompt_id})

    run = server.run({**text_to_video("30s: a red circle moves right", seed=11), **pictures("made")}, stop)
    assert run.status == "interrupted"
    assert run.progress("made")[-1][0] < 33
    after = server.run({**text_to_video(seed=2), **pictures("made")})
    assert frames(server, after).shape == (48, 64, 64, 3)


def test_the_page_finds_help_translations_and_templates(server: Server, info: dict[str, Any]) -> None:
    templates = server.get("api/workflow_templates")["some_name-main"]
    assert set(templates) == {path.stem for path in (ROOT / "workflows").glob("*.json")}
    for name in templates:
        assert server.get(f"api/workflow_templates/some_name-main/{name}.json")["nodes"]
    languages = server.get("i18n")
    for name, described in info.items():
        page = server.read(f"extensions/some_name-main/docs/{name}.md").decode()
        for key in inputs(described):
            assert f"`{key}`" in page, (name, key)
            for language in ("en", "zh"):
                assert languages[language]["nodeDefs"][name]["inputs"][key]["tooltip"], (language, name, key)


def test_english_translations_say_what_the_nodes_say(server: Server, info: dict[str, Any]) -> None:
    english = server.get("i18n")["en"]["nodeDefs"]
    for name, described in info.items():
        entry = english[name]
        assert (entry["display_name"], entry["description"]) == (described["display_name"], described["description"])
        for key, (_, options) in inputs(described).items():
            assert entry["inputs"][key]["tooltip"] == options["tooltip"], (name, key)


def test_the_default_storyboard_of_the_nodes_is_the_one_tested(info: dict[str, Any]) -> None:
    assert info["MagiStoryboard"]["input"]["required"]["text"][1]["default"].splitlines()[0] == STORY.splitlines()[0]
