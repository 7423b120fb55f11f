"""Going on: with a session, exactly where it stopped, or with any video."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import Input, io

from magi_core.errors import MagiError
from magi_core.making import Making
from magi_core.pipeline import context_frames

from . import inputs, sampling, sockets, values
from .filming import Request, made, stops
from .making import PATCH, Setting, add, encode_pictures, lay_out, start
from .running import clip_latents, encoder_of, model_of, use_of, used_by
from .vae import MagiVAE

KEPT = " For latent, images and video; a session keeps its own."


class ExtendVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiExtendVideo",
            display_name="Extend Video (MAGI)",
            category=sockets.CATEGORY,
            description="Goes on with a video and a new storyboard. From a session it is exact: nothing is encoded again. From latents, images or "
            "a video file the last 4 seconds are looked at. The result is the new part alone.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="From 'Load MAGI Model'; for a session the model that made it, with the same LoRAs.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="What is seen next, from 'Encode Storyboard (MAGI)' or core's CLIP Text Encode.",
                ),
                inputs.seed(" A session keeps its own seed."),
                inputs.fit(),
                inputs.finish(),
                inputs.more_to_come(),
                sockets.Session.Input(
                    "session",
                    optional=True,
                    tooltip="From 'Chunk Denoise', 'Extend Video' or 'Load Session': goes on exactly.",
                ),
                io.Latent.Input("latent", optional=True, tooltip="Or the latents of a video; used as they are."),
                io.Image.Input("images", optional=True, tooltip="Or a video's frames, at the model's frame rate."),
                io.Video.Input("video", optional=True, tooltip="Or a video of any frame rate."),
                inputs.vae(
                    " Shows every chunk as soon as it is finished, and is needed for images, a video, and keyframes.",
                    optional=True,
                ),
                *inputs.sampling(KEPT, optional=True),
                inputs.sigmas(KEPT),
                inputs.seconds(),
                *inputs.going_on(),
                inputs.history_guidance(KEPT),
                inputs.anchor(KEPT),
            ],
            **inputs.made(),
        )

    @classmethod
    def validate_inputs(
        cls,
        fit: str | None,
        steps: int | None = 0,
        window: int | None = 0,
        kv_ranges: str | None = "",
        anchor: str | None = sampling.OWN,
    ) -> bool | str:
        return values.checked(
            lambda: values.check_choice("fit", fit, inputs.FITS),
            lambda: sampling.check_settings(steps, window, kv_ranges),
            lambda: values.check_choice("anchor", anchor, list(sampling.ANCHORS)),
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        return stops()

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: Any,
        seed: int,
        fit: str,
        finish: bool,
        more_to_come: int,
        session: sockets.SessionFile | sockets.HeldSession | None = None,
        latent: dict[str, Any] | None = None,
        images: torch.Tensor | None = None,
        video: Input.Video | None = None,
        vae: MagiVAE | None = None,
        steps: int = 0,
        window: int = 0,
        guidance: float = 0.0,
        kv_ranges: str = "",
        sigmas: torch.Tensor | None = None,
        seconds: float = 4.0,
        on_repeat: str = inputs.GO_ON,
        review_every: int = 0,
        history_guidance: float = 0.0,
        anchor: str = sampling.OWN,
    ) -> io.NodeOutput:
        if sum(start is not None for start in (session, latent, images, video)) != 1:
            raise MagiError("connect exactly one of session, latent, images and video: what is to be continued")
        held = model_of(model)
        config = held.config
        said, captions = values.captions_of(conditioning, config.dit.caption_channels, seconds)
        encode = encoder_of(vae, config.scale_factor, fit)
        storyboard = said.board.storyboard
        loras = used_by(model)
        asked = sampling.Asked(steps, window, guidance, history_guidance, kv_ranges, sigmas, anchor)
        if session is not None:
            asked.kept()
            making = session.load(held.dit, loras)
            own, size = making.session.sampling, (making.session.height * PATCH, making.session.width * PATCH)
            prefix = None
            layout = lay_out(config, storyboard, own, more_to_come=more_to_come)
            use = use_of(model, own, *size)
            pictures = encode_pictures(layout, said, None, encode, *size)
        else:
            own = sampling.sampling_with(config.sampling, asked)
            if latent is not None:
                prefix = values.latents_of(latent, config.dit.latent_channels, config.scale_factor, "latent")
            else:
                frames = clip_frames(images, video, config.fps, context_frames(own))
                prefix = clip_latents(frames, clip_size(frames), encode)
            size = prefix.shape[3] * PATCH, prefix.shape[4] * PATCH
            layout = lay_out(config, storyboard, own, prefix=prefix, more_to_come=more_to_come)
            use = use_of(model, own, *size)
            pictures = encode_pictures(layout, said, None, encode, *size)

        def build() -> Making:
            if session is None:
                begun = start(held, Setting(*size, seed, own), said, prefix, loras)
            else:
                begun = session.load(held.dit, loras)
            add(begun, held, layout, said, captions, pictures)
            return begun

        return made(Request(model, use, said, vae, finish, on_repeat, review_every, cls.hidden), build)


def clip_frames(images: torch.Tensor | None, video: Input.Video | None, fps: int, count: int) -> Any:
    """The last ``count`` frames, uint8 [T, H, W, 3] at ``fps``."""
    if images is not None:
        return values.last_frames(images, fps, fps, count, "images")
    assert video is not None  # noqa: S101 - one of the two is there
    parts = video.get_components()
    return values.last_frames(parts.images, parts.frame_rate, fps, count, "video")


def clip_size(frames: Any) -> tuple[int, int]:
    """Height and width of the new part: the clip's own, rounded down to multiples of 16."""
    height, width = (max(values.SMALLEST, side // values.PIXELS * values.PIXELS) for side in frames.shape[1:3])
    return height, width


NODES: list[Any] = [ExtendVideo]
