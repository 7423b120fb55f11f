"""Prompts in ComfyUI's API form, built from parts."""

from __future__ import annotations

from typing import Any

Prompt = dict[str, dict[str, Any]]

FAST = {"steps": 4, "window": 0, "guidance": 0.0, "kv_ranges": ""}
SIZE = {"width": 64, "height": 64}
STORY = "1s: a red circle moves right\n1s: the circle turns blue"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def loaders() -> Prompt:
    return {
        "model": node("MagiLoadModel", model="magi-nano", precision="auto"),
        "clip": node("MagiLoadTextEncoder", text_encoder="magi-nano", device="auto"),
        "vae": node("MagiLoadVAE", vae="magi-nano", precision="auto"),
    }


def story(text: str, name: str = "story") -> Prompt:
    """A storyboard and its conditioning, ``name`` and ``name + "_said"``."""
    plain = {"style": "none", "motion": "none", "high_quality": False, "countdown": False, "negative": False}
    return {
        name: node("MagiStoryboard", text=text),
        f"{name}_said": node("MagiEncodeStoryboard", clip=["clip", 0], storyboard=[name, 0], **plain),
    }


def denoise(said: str = "story_said", **changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"model": ["model", 0], "conditioning": [said, 0], "seed": 7, **SIZE, **FAST}
    return node("MagiChunkDenoise", **inputs | {"fit": "crop", "finish": True, "more_to_come": 0, **changes})


def extend(said: str, **changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"model": ["model", 0], "conditioning": [said, 0], "seed": 7, "fit": "crop"}
    return node("MagiExtendVideo", **inputs | {"finish": True, "more_to_come": 0, **changes})


def show(latent: str, name: str = "shown") -> Prompt:
    """Core's VAE Decode, Create Video and Save Video; ``name`` is the output node."""
    return {
        f"{name}_images": node("VAEDecode", samples=[latent, 0], vae=["vae", 0]),
        f"{name}_video": node("CreateVideo", images=[f"{name}_images", 0], fps=24.0),
        name: node(
            "SaveVideo", video=[f"{name}_video", 0], filename_prefix=f"test/{name}", format="auto", codec="auto"
        ),
    }


def pictures(latent: str, name: str = "pictures") -> Prompt:
    """All frames as PNG, without loss; ``name`` is the output node."""
    return {
        f"{name}_images": node("VAEDecode", samples=[latent, 0], vae=["vae", 0]),
        name: node("SaveImage", images=[f"{name}_images", 0], filename_prefix=f"test/{name}"),
    }


def text_to_video(text: str = STORY, **changes: Any) -> Prompt:
    return {**loaders(), **story(text), "made": denoise(**changes)}
