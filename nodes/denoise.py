"""The heart of the graph: a new video, denoised chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from magi_core.config import MagiConfig, Sampling
from magi_core.errors import MagiError
from magi_core.making import Making
from magi_core.pipeline import context_frames

from . import inputs, sampling, sockets, values
from .filming import Request, made, stops
from .making import PATCH, Encode, Setting, add, encode_pictures, lay_out, start
from .running import clip_latents, encoder_of, model_of, use_of, used_by
from .vae import MagiVAE


class ChunkDenoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiChunkDenoise",
            display_name="Chunk Denoise (MAGI)",
            category=sockets.CATEGORY,
            description="Makes a video from conditioning, chunk by chunk: up to four one-second chunks are denoised at once, each noisier than "
            "the one before. Give a picture to start from, or a video to continue.",
            inputs=[
                io.Model.Input("model", tooltip="From 'Load MAGI Model'."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="From 'Encode Storyboard (MAGI)', or one prompt from core's CLIP Text Encode.",
                ),
                *inputs.size(),
                inputs.seed(),
                *inputs.sampling(),
                inputs.fit(),
                inputs.finish(),
                inputs.more_to_come(),
                inputs.vae(
                    " Shows every chunk as soon as it is finished, and is needed for pictures: start image, start video, keyframes.",
                    optional=True,
                ),
                io.Image.Input("start_image", optional=True, tooltip="A picture that becomes the first frame."),
                io.Image.Input(
                    "start_video",
                    optional=True,
                    tooltip="Frames at the model's frame rate that are continued: the last 4 seconds are looked at. They are not part of the result.",
                ),
                io.Latent.Input(
                    "start_latent",
                    optional=True,
                    tooltip="Latents of a video that is continued, as a chunk denoise or VAE Encode gave them; they set the size. Not part of the result.",
                ),
                inputs.sigmas(),
                inputs.seconds(),
                *inputs.going_on(),
                inputs.history_guidance(),
                inputs.anchor(),
            ],
            **inputs.made(),
        )

    @classmethod
    def validate_inputs(
        cls,
        width: int | None,
        height: int | None,
        fit: str | None,
        steps: int | None,
        window: int | None,
        kv_ranges: str | None,
        anchor: str | None = sampling.OWN,
    ) -> bool | str:
        return values.checked(
            lambda: values.check_size(0 if width is None else width, 0 if height is None else height),
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
        width: int,
        height: int,
        seed: int,
        steps: int,
        window: int,
        guidance: float,
        kv_ranges: str,
        fit: str,
        finish: bool,
        more_to_come: int,
        vae: MagiVAE | None = None,
        start_image: torch.Tensor | None = None,
        start_video: torch.Tensor | None = None,
        start_latent: dict[str, Any] | None = None,
        sigmas: torch.Tensor | None = None,
        seconds: float = 4.0,
        on_repeat: str = inputs.GO_ON,
        review_every: int = 0,
        history_guidance: float = 0.0,
        anchor: str = sampling.OWN,
    ) -> io.NodeOutput:
        values.check_size(width, height)
        if sum(start is not None for start in (start_image, start_video, start_latent)) > 1:
            raise MagiError("connect only one of start_image, start_video and start_latent")
        held = model_of(model)
        config = held.config
        asked = sampling.Asked(steps, window, guidance, history_guidance, kv_ranges, sigmas, anchor)
        own = sampling.sampling_with(config.sampling, asked)
        setting = Setting(height, width, seed, own)
        said, captions = values.captions_of(conditioning, config.dit.caption_channels, seconds)
        encode = encoder_of(vae, config.scale_factor, fit)
        size = setting.size(config)
        prefix = prefix_of(config, own, size, encode, start_video, start_latent)
        if prefix is not None:
            size = prefix.shape[3] * PATCH, prefix.shape[4] * PATCH
        image = values.first_image(start_image, "start_image")
        layout = lay_out(config, said.board.storyboard, own, prefix=prefix, more_to_come=more_to_come)
        use = use_of(model, own, *size)
        images = encode_pictures(layout, said, image, encode, *size)
        loras = used_by(model)

        def build() -> Making:
            making = start(held, setting, said, prefix, loras)
            add(making, held, layout, said, captions, images)
            return making

        return made(Request(model, use, said, vae, finish, on_repeat, review_every, cls.hidden), build)


def prefix_of(
    config: MagiConfig,
    own: Sampling,
    size: tuple[int, int],
    encode: Encode | None,
    video: torch.Tensor | None,
    latent: dict[str, Any] | None,
) -> torch.Tensor | None:
    """Scaled latents of what is continued: as much of a video's end as its continuation looks at (IMAGE, at the model's frame rate), or a LATENT as it is."""
    if latent is not None:
        return values.latents_of(latent, config.dit.latent_channels, config.scale_factor, "start_latent")
    if video is None:
        return None
    frames = values.last_frames(video, config.fps, config.fps, context_frames(own), "start_video")
    return clip_latents(frames, size, encode)


NODES: list[Any] = [ChunkDenoise]
