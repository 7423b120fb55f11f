"""Bad input to a running server: each gives an error that names what is wrong and what is allowed, and the server lives on.

What can be known from the prompt alone is refused when it is queued, before anything is loaded; the rest fails in its node.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.comfy.graphs import extend, loaders, node, pictures, story, text_to_video
from tests.comfy.server import Prompt, Refused, Server

Case = tuple[str, Prompt, str]


def end(prompt: Prompt, made: str = "made") -> Prompt:
    return {**prompt, **pictures(made)}


def changed(name: str, **inputs: Any) -> Prompt:
    """A good prompt with some inputs of one node changed."""
    prompt = end(text_to_video("1s: a red circle moves right"))
    prompt[name]["inputs"] |= inputs
    return prompt


def board(text: str) -> Prompt:
    return {"story": node("MagiStoryboard", text=text), "plan": node("MagiPlan", storyboard=["story", 0], fps=24.0)}


def shot(**inputs: Any) -> Prompt:
    made = node("MagiShot", **{"prompt": "a", "seconds": 1.0} | inputs)
    return {"shot": made, "plan": node("MagiPlan", storyboard=["shot", 0], fps=24.0)}


def save(prefix: str) -> Prompt:
    saved = node("MagiSaveSession", session=["made", 1], filename_prefix=prefix)
    return {**text_to_video("1s: a"), "saved": saved}


def load(name: str) -> Prompt:
    more = extend("story_said", session=["loaded", 0])
    prompt = {**loaders(), **story("1s: a"), "loaded": node("MagiLoadSession", session=name), "more": more}
    return end(prompt, "more")


def box(**inputs: Any) -> Prompt:
    made = node(
        "MagiVideo", **{"storyboard": "1s: a", "model": "magi-nano", "width": 64, "height": 64, "seed": 1} | inputs
    )
    return {"made": made, "shown": node("SaveImage", images=["made", 1], filename_prefix="test/box")}


RED = {"picture": node("LoadImage", image="red.png")}
PAIR = {"start_image": ["picture", 0], "start_video": ["picture", 0], "vae": ["vae", 0]}


def continued(**inputs: Any) -> Prompt:
    return end({**loaders(), **RED, **story("1s: a"), "more": extend("story_said", **inputs)}, "more")


def filled(kind: str, shape: str, value: str) -> Prompt:
    """An IMAGE, a LATENT or SIGMAS of one value, from the tests' own nodes."""
    return {"filled": node(f"Test{kind}", shape=shape, value=value)}


def with_images(value: str, name: str, shape: str = "24x64x64x3") -> Prompt:
    """A video that begins with images of one value, given to an input of Chunk Denoise."""
    return {**filled("Images", shape, value), **changed("made", vae=["vae", 0], **{name: ["filled", 0]})}


def with_shot(value: str, kind: str) -> Prompt:
    """The same for a keyframe, on a shot or put in later."""
    prompt = {**filled("Images", "1x64x64x3", value), **changed("made", vae=["vae", 0])}
    if kind == "shot":
        prompt["story"] = node("MagiShot", prompt="a", seconds=1.0, keyframe=["filled", 0])
    else:
        prompt["words"] = node("MagiStoryboard", text="1s: a")
        prompt["story"] = node("MagiKeyframe", storyboard=["words", 0], image=["filled", 0], second=0.0)
    return prompt


REFUSED: list[Case] = [
    ("a width that is no multiple of 16", changed("made", width=65), "width is 65; it must be a multiple of 16"),
    ("a width that is too small", changed("made", width=16), "width is 16"),
    ("a negative width", changed("made", width=-64), "width is -64"),
    ("a huge width", changed("made", width=1 << 20), "width is 1048576"),
    ("a height that is no multiple of 16", changed("made", height=100), "height is 100.*try 96"),
    ("words for a width", changed("made", width="wide"), "width is 'wide'"),
    ("nothing for a width", changed("made", width=None), "width"),
    ("a negative seed", changed("made", seed=-1), "smaller than min.*seed"),
    ("a seed of 65 bits", changed("made", seed=2**64), "bigger than max.*seed"),
    ("negative steps", changed("made", steps=-4), "steps is -4; it must be .* from 0 to 1000"),
    ("too many steps", changed("made", steps=5000), "steps is 5000; it must be .* from 0 to 1000"),
    ("a huge window", changed("made", window=99), "window is 99; it must be .* from 0 to 16"),
    ("negative guidance", changed("made", guidance=-1.0), "smaller than min.*guidance"),
    ("huge guidance", changed("made", guidance=1e9), "bigger than max.*guidance"),
    ("huge history guidance", changed("made", history_guidance=1e9), "bigger than max.*history_guidance"),
    ("another anchor", changed("made", anchor="sometimes"), "anchor is 'sometimes'.*model's own, on, off"),
    ("ranges that are no numbers", changed("made", kv_ranges="5;4"), "kv_ranges is '5;4'"),
    ("a range of nothing", changed("made", kv_ranges="0"), "kv_ranges is '0'"),
    ("a fit of an old workflow", changed("made", fit="zoom"), "fit is .*not in list"),
    ("negative seconds to come", changed("made", more_to_come=-1), "smaller than min.*more_to_come"),
    ("a model that is not there", changed("model", model="magi-mega"), "model is .*not in list"),
    ("a model outside", changed("model", model="../../../etc/passwd"), "model is .*not in list"),
    ("a checkpoint outside", changed("model", model="magi/../../x"), "model is .*not in list"),
    (
        "steps and a window that do not go together",
        changed("made", steps=7, window=3),
        "steps is 7 and window is 3; .*try 6",
    ),
    (
        "steps and ranges that do not go together",
        changed("made", steps=8, kv_ranges="3,2,1"),
        "kv_ranges has 3 entries and steps is 8",
    ),
    ("a precision of an old workflow", changed("model", precision="fp64"), "precision is 'fp64', .*not in list.*fp8"),
    (
        "an attention of an old workflow",
        changed("model", attention="xformers"),
        "attention is 'xformers', .*not in list",
    ),
    ("an attention that this machine cannot run", changed("model", attention="triton"), "'triton' cannot run on cpu"),
    ("a place of an old workflow", changed("model", weights="lowvram"), "weights is 'lowvram', .*not in list"),
    ("a number for a model", changed("model", model=5), "model is .*not in list"),
    ("a precision that a VAE has not", changed("vae", precision="fp8"), "precision is 'fp8'.*not in list"),
    ("words for steps", changed("made", steps="many"), "steps is 'many'|(?i:convert)"),
    ("ranges in other digits", changed("made", kv_ranges="\u0665,\u0664"), "kv_ranges is"),
    ("no seconds of one prompt", changed("made", seconds=0.0), "smaller than min.*seconds"),
    ("too many seconds of one prompt", changed("made", seconds=1e6), "bigger than max.*seconds"),
    (
        "ranges of an extension that are no numbers",
        continued(images=["picture", 0], kv_ranges="5;4"),
        "kv_ranges is '5;4'",
    ),
    (
        "negative steps of an extension",
        continued(images=["picture", 0], steps=-4),
        "steps is -4; it must be .* from 0 to 1000",
    ),
    ("a fit of an extension of an old workflow", continued(images=["picture", 0], fit="zoom"), "fit is .*not in list"),
    ("a text encoder outside", changed("clip", text_encoder="/etc/passwd"), "text_encoder is .*not in list"),
    ("a VAE that is not there", changed("vae", vae="größe/图"), "vae is .*not in list"),
    ("a style of an old workflow", changed("story_said", style="oil"), "style is .*not in list"),
    ("a VAE for a model", changed("made", model=["vae", 0]), "mismatch.*model"),
    ("no storyboard text", board(""), "no shots"),
    ("blank storyboard text", board(" \n# only a remark\n"), "no shots"),
    ("a shot of no seconds", board("0s: a"), "seconds is 0"),
    ("a shot of negative seconds", board("-1s: a"), "seconds|line 1"),
    ("a shot without words", board("1s: "), "prompt is empty"),
    ("an endless shot", board("99999s: a"), "at most 3600"),
    ("a prompt of 10,001 characters", board("1s: " + "a" * 10_001), "10001 characters"),
    ("a thousand and one shots", board("a\n" * 1001), "1001 shots"),
    ("a control character", board("1s: a\x07b"), "control character"),
    ("half a character", board("1s: a\ud800b"), "half a character|surrogate"),
    ("broken JSON", board('{"version": 1, "shots": ['), "JSON"),
    ("JSON of another version", board('{"version": 2, "shots": [{"prompt": "a"}]}'), "version"),
    ("JSON with an unknown key", board('{"version": 1, "shots": [{"prompt": "a", "second": 1}]}'), "second"),
    ("a keyframe outside", board("1s: a [image: ../../secret.png]"), "inside the storyboard's folder"),
    ("an absolute keyframe", board("1s: a [image: /etc/passwd]"), "inside the storyboard's folder"),
    ("a keyframe that is not there", board("1s: a [image: 图.png]"), "is not in the storyboard's folder"),
    ("a damaged keyframe", board("1s: a [image: broken.png]"), "broken.png.*(damaged|not an image)"),
    ("words for seconds", shot(seconds="long"), "seconds is 'long'"),
    ("not a number of seconds", shot(seconds=float("nan")), "seconds is nan"),
    ("a shot node without words", shot(prompt=""), "prompt is empty"),
    ("a shot node with spaces", shot(prompt="  "), "prompt is empty"),
    ("a shot node of no seconds", shot(seconds=0.0), "seconds is 0"),
    ("a shot node of negative seconds", shot(seconds=-3.0), "seconds is -3"),
    ("an endless shot node", shot(seconds=1e9), "at most 3600"),
    ("a session outside", load("../../x.session [output]"), "session is .*not in list"),
    ("a session that is not there", load("x.session [output]"), "session is .*not in list"),
    ("a session to be saved outside", save("../../x"), "filename_prefix is '../../x'"),
    ("a session to be saved at the root", save("/etc/x"), "filename_prefix is '/etc/x'"),
    ("a session to be saved outside of Windows", save("..\\..\\x"), "filename_prefix is"),
    ("a session without a name", save("  "), "filename_prefix is"),
    ("a session with a NUL", save("a\0b"), "filename_prefix is"),
    ("a session with a long name", save("a" * 500), "filename_prefix is"),
    ("a box without words", box(storyboard=""), "no shots"),
    ("a box of a wrong size", box(width=50), "width is 50"),
    ("a box with another model", box(model="flux"), "model is .*not in list"),
]

FAILING: list[Case] = [
    (
        "steps that are no multiple of the window",
        changed("made", steps=7),
        "steps is 7 and window is 4; .*try 8",
    ),
    (
        "a window that does not divide the steps",
        changed("made", window=3, steps=0),
        "steps is 8 and window is 3; .*try 9",
    ),
    ("a damaged file", changed("model", model="corrupt.safetensors"), "corrupt.safetensors"),
    ("an empty file", changed("model", model="empty.safetensors"), "empty.safetensors"),
    ("half a file", changed("model", model="cut.safetensors"), "cut.safetensors"),
    ("a file of something else", changed("model", model="not_a_transformer.safetensors"), "not_a_transformer"),
    ("a checkpoint of another configuration", changed("model", model="magi/wrong/inference_weight"), "layer|lack|miss"),
    ("a damaged session", load("broken.session [input]"), "broken.session"),
    ("two starts", {**RED, **changed("made", **PAIR)}, "only one of start_image"),
    ("an image without a VAE", {**RED, **changed("made", start_image=["picture", 0])}, "no VAE"),
    ("a clip of one frame", {**RED, **changed("made", start_video=["picture", 0], vae=["vae", 0])}, "at least 4"),
    ("nothing to continue", continued(), "exactly one of session, latent, images and video"),
    (
        "two things to continue",
        continued(images=["picture", 0], latent=["in", 0])
        | {"in": node("EmptyLatentImage", width=64, height=64, batch_size=1)},
        "exactly one",
    ),
    (
        "latents of another model",
        continued(latent=["in", 0]) | {"in": node("EmptyLatentImage", width=64, height=64, batch_size=1)},
        "latent is .*16, frames",
    ),
    (
        "a keyframe after the end",
        {
            **RED,
            **board("1s: a"),
            "late": node("MagiKeyframe", storyboard=["story", 0], image=["picture", 0], second=5.0),
            "plan": node("MagiPlan", storyboard=["late", 0], fps=24.0),
        },
        "second is 5",
    ),
    ("nothing finished", changed("made", finish=False), "no chunk was finished"),
    *(
        (f"{value} in {name}", with_images(value, name), f"{name} holds NaN or infinite pixels")
        for value in ("nan", "inf", "-inf")
        for name in ("start_image", "start_video")
    ),
    ("NaN in a shot's keyframe", with_shot("nan", "shot"), "keyframe holds NaN"),
    ("infinity in a keyframe", with_shot("inf", "keyframe"), "image holds NaN or infinite"),
    (
        "NaN to be continued",
        {**filled("Images", "24x64x64x3", "nan"), **continued(images=["filled", 0], vae=["vae", 0])},
        "images holds NaN",
    ),
    (
        "infinity in a video",
        {
            **filled("Images", "24x64x64x3", "inf"),
            "video": node("CreateVideo", images=["filled", 0], fps=30.0),
            **continued(video=["video", 0], vae=["vae", 0]),
        },
        "video holds NaN or infinite",
    ),
    (
        "NaN in latents",
        {**filled("Latents", "1x16x6x8x8", "nan"), **continued(latent=["filled", 0])},
        "latent holds NaN",
    ),
    ("no picture at all", with_images("0", "start_image", "0x64x64x3"), "start_image has shape"),
    ("a picture of two channels", with_images("0", "start_image", "1x64x64x2"), "start_image has shape"),
    (
        "latents of an odd size",
        {**filled("Latents", "1x16x6x7x8", "0"), **continued(latent=["filled", 0])},
        "height is 7",
    ),
    (
        "latents of two videos",
        {**filled("Latents", "2x16x6x8x8", "0"), **continued(latent=["filled", 0])},
        "latent is .*one video",
    ),
    (
        "latents to be decoded of another model",
        {
            **loaders(),
            **filled("Latents", "1x4x6x8x8", "0"),
            "video": node("MagiDecodeVideo", latent=["filled", 0], vae=["vae", 0], fps=24.0),
            "shown": node("SaveVideo", video=["video", 0], filename_prefix="x", format="auto", codec="auto"),
        },
        "latent is .*16, frames",
    ),
    ("guidance that is not a number", changed("made", guidance=float("nan")), "guidance is nan"),
    (
        "seconds that are not a number",
        {**changed("made", seconds=float("nan")), "story_said": node("CLIPTextEncode", text="a", clip=["clip", 0])},
        "seconds is nan",
    ),
    (
        "frames per second that are not a number",
        {
            "story": node("MagiStoryboard", text="1s: a"),
            "plan": node("MagiPlan", storyboard=["story", 0], fps=float("nan")),
        },
        "fps|frame rate|frames per second",
    ),
    (
        "a keyframe at no second",
        {
            **RED,
            **board("1s: a"),
            "late": node("MagiKeyframe", storyboard=["story", 0], image=["picture", 0], second=float("nan")),
            "plan": node("MagiPlan", storyboard=["late", 0], fps=24.0),
        },
        "second is nan",
    ),
    (
        "sigmas of another kind of model",
        {**filled("Sigmas", "8", "14.6"), **changed("made", steps=0, sigmas=["filled", 0])},
        "sigmas are 14.6",
    ),
    (
        "sigmas that are no multiple of the window",
        {**filled("Sigmas", "7", "1"), **changed("made", steps=0, sigmas=["filled", 0])},
        "steps is 7 and window is 4",
    ),
    (
        "sigmas beside steps",
        {**filled("Sigmas", "8", "1"), **changed("made", steps=4, sigmas=["filled", 0])},
        "steps is 4, but the connected sigmas are for 8",
    ),
    (
        "two prompts in one conditioning",
        {
            **changed("made", conditioning=["both", 0]),
            "a": node("CLIPTextEncode", text="a", clip=["clip", 0]),
            "b": node("CLIPTextEncode", text="b", clip=["clip", 0]),
            "both": node("ConditioningCombine", conditioning_1=["a", 0], conditioning_2=["b", 0]),
        },
        "2 entries.*combines no prompts",
    ),
    (
        "settings beside a session",
        {**text_to_video("1s: a"), **end({"more": extend("story_said", session=["made", 1], steps=8)}, "more")},
        "steps is 8, but a session keeps",
    ),
    (
        "another configuration's session",
        load("other configuration.session [input]"),
        "made with another model.*num_layers",
    ),
    ("another model's session", load("other weights.session [input]"), "made with another model"),
    *(
        (f"a session, {name}", load(f"{name}.session [input]"), f"{name}.session.*damaged")
        for name in ("cut", "flipped header", "flipped tensor")
    ),
    *(
        (f"a VAE, {kind}", changed("vae", vae=f"magi/{kind} vae"), f"{kind} vae")
        for kind in ("cut", "shape", "nan", "json")
    ),
    *(
        (f"a T5, {kind}", changed("clip", text_encoder=f"magi/{kind} t5"), f"{kind} t5")
        for kind in ("cut", "shape", "nan", "json")
    ),
]


def ids(cases: list[Case]) -> list[str]:
    return [name for name, _, _ in cases]


@pytest.mark.parametrize(("name", "prompt", "message"), REFUSED, ids=ids(REFUSED))
def test_refused_before_anything_is_loaded(server: Server, name: str, prompt: Prompt, message: str) -> None:
    with pytest.raises(Refused) as refused:
        server.run(prompt)
    matches(refused.value.reasons, message)


@pytest.mark.parametrize(("name", "prompt", "message"), FAILING, ids=ids(FAILING))
def test_fails_with_advice(server: Server, name: str, prompt: Prompt, message: str) -> None:
    run = server.run(prompt)
    assert run.status == "error"
    matches(run.error or "", message)


def test_ten_thousand_characters_and_any_script_are_fine(server: Server) -> None:
    run = server.run(end(text_to_video("1s: " + "红色圆圈 Größe עברית 🙂 " * 500)))
    assert run.status == "success", run.error


def test_any_script_in_folders_and_files_is_fine(server: Server) -> None:
    prompt = text_to_video("1s: 红色圆圈 🙂 [image: größe 图.png]")
    prompt["model"]["inputs"]["model"] = prompt["vae"]["inputs"]["vae"] = "magi/größe 图 🎬/inference_weight"
    prompt["clip"]["inputs"]["text_encoder"] = "magi/größe 图 🎬/t5"
    prompt["made"]["inputs"]["vae"] = ["vae", 0]
    prompt["saved"] = node("MagiSaveSession", session=["made", 1], filename_prefix="עברית 🎬/größe %year%")
    run = server.run(end(prompt))
    assert run.status == "success", run.error
    (file,) = run.history["outputs"]["saved"]["sessions"]
    more = server.run(load(f"{file['subfolder']}/{file['filename']} [output]"))
    assert more.status == "success", more.error


def test_a_missing_input_is_named(server: Server) -> None:
    prompt = changed("made")
    del prompt["made"]["inputs"]["seed"]
    with pytest.raises(Refused) as refused:
        server.run(prompt)
    matches(refused.value.reasons, "(?i)required input.*seed")


def matches(text: str, pattern: str) -> None:
    assert re.search(pattern, text, re.DOTALL), text
