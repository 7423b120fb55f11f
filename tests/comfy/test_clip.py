"""A T5 that core's CLIPLoader has loaded, on our sockets: the numbers of T5 itself, and a clear no where its type does not serve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import T5EncoderModel, T5TokenizerFast

from magi_core.text.cleaning import clean_caption
from tests.comfy.graphs import denoise, node, pictures, story, text_to_video
from tests.comfy.server import Prompt, Refused, Server, find_gguf_nodes
from tests.comfy.test_nodes import frames
from tests.comfy.tiny import STANDS_FOR, read_back, tiny_t5

PROMPTS = ("A red circle (moves:1.3) right", "It stops; " + "very long words " * 400)
CLOSE = 1e-2
"""Of values around 1; ComfyUI of 2025 computes attention in its own way and is up to 5e-3 away, ComfyUI-GGUF restores weights through float16: 2e-3."""
MASKED, UNMASKED = ("mochi", "ltxv", "stable_diffusion"), ("sd3", "pixart", "chroma")


WHOLE = "tiny_t5xxl.safetensors"


GGUF_NODES = find_gguf_nodes()


def core_clip(kind: str, file: str = WHOLE) -> dict[str, Any]:
    return node("CLIPLoaderGGUF" if file.endswith(".gguf") else "CLIPLoader", clip_name=file, type=kind)


def said(kind: str, file: str) -> Prompt:
    written = node("TestWriteConditioning", conditioning=["story_said", 0], name=f"said_{kind}")
    return {
        "clip": core_clip(kind, file),
        **story("\n".join(f"1s: {prompt}" for prompt in PROMPTS)),
        "written": written,
    }


@pytest.mark.parametrize(
    ("kind", "file"), [*((kind, WHOLE) for kind in MASKED), ("mochi", "tiny_t5xxl_fp8_scaled.safetensors")]
)
def test_a_t5_of_core_says_what_t5_says(server: Server, kind: str, file: str) -> None:
    run = server.run(said(kind, file))
    assert run.status == "success", run.error
    check_said(server, kind, tiny_t5(128) if file == WHOLE else read_back(tiny_t5(128)))


@pytest.mark.skipif(isinstance(GGUF_NODES, str), reason=str(GGUF_NODES))
@pytest.mark.parametrize("quantised", ["Q8_0", "Q4_0"])
def test_a_t5_of_comfyui_gguf_says_what_its_numbers_say(server: Server, quantised: str) -> None:
    pytest.importorskip("gguf", reason="writing GGUF needs the package 'gguf': pip install 'comfyui-magi[gguf]'")
    from tests.tiny_gguf import write_gguf

    t5, file = tiny_t5(128), f"tiny_t5xxl_{quantised}.gguf"
    weights = {name: tensor for name, tensor in t5.state_dict().items() if name != "encoder.embed_tokens.weight"}
    mark = f"{STANDS_FOR}enc.blk.23.ffn_up.weight"
    meant = write_gguf(weights, server.base / "models" / "text_encoders" / file, quantised, (mark,))
    t5.load_state_dict(meant, strict=False)
    run = server.run(said("mochi", file))
    assert run.status == "success", run.error
    check_said(server, "mochi", t5)


def check_said(server: Server, kind: str, t5: T5EncoderModel) -> None:
    """What ``said`` has written is what ``t5`` says."""
    written = load_file(server.base / "output" / f"said_{kind}.safetensors")
    tokenizer = T5TokenizerFast.from_pretrained(server.folder / "comfy" / "text_encoders" / "t5_tokenizer")
    for number, prompt in enumerate(PROMPTS):
        ids = tokenizer(clean_caption(prompt), truncation=True, max_length=800, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = t5(input_ids=ids).last_hidden_state
        assert written[f"{number}.mask"].all(), "captions travel without padding"
        torch.testing.assert_close(written[f"{number}.embedding"], expected, atol=CLOSE, rtol=0)
    assert written["1.mask"].shape == (1, 800)


def test_a_video_with_cores_text_encoder(server: Server) -> None:
    prompt = {**text_to_video("1s: a red circle moves right"), "clip": core_clip("mochi"), **pictures("made")}
    assert frames(server, server.run(prompt)).shape == (24, 64, 64, 3)


def test_one_prompt_of_cores_clip_text_encode(server: Server) -> None:
    prompt = text_to_video()
    prompt["story_said"] = node("CLIPTextEncode", text="a red circle moves right", clip=["clip", 0])
    prompt["made"] = denoise(seconds=1.5, on_repeat="start over")
    short = frames(server, server.run({**prompt, **pictures("made")}))
    assert len(short) == 36
    whole = server.run({**text_to_video("1.5s: a red circle moves right", on_repeat="start over"), **pictures("made")})
    assert np.array_equal(frames(server, whole), short)


@pytest.mark.parametrize("kind", UNMASKED)
def test_types_that_do_not_mask_are_refused(server: Server, kind: str) -> None:
    run = server.run({**text_to_video("1s: a"), "clip": core_clip(kind), **pictures("made")})
    assert run.status == "error" and "'mochi'" in (run.error or ""), run.error
    assert "mask" in (run.error or "") or "needs T5-XXL alone" in (run.error or ""), run.error


@pytest.mark.parametrize("file", ["narrow_t5xxl.safetensors", "old_t5xxl.safetensors"])
def test_another_t5_is_refused_before_the_model_is_loaded(server: Server, file: str) -> None:
    kind = "cosmos" if file.startswith("old") else "mochi"
    run = server.run({**text_to_video("1s: a"), "clip": core_clip(kind, file), **pictures("made")})
    assert run.status == "error" and "64 wide, the model reads 128" in (run.error or ""), run.error


def test_a_type_that_core_does_not_know(server: Server) -> None:
    with pytest.raises(Refused):
        server.run({**text_to_video("1s: a"), "clip": core_clip("magi"), **pictures("made")})
