"""Videos at the end of the graph: latents straight into a file, and one node that does it all."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import Input, InputImpl, io
from comfy_execution.graph_utils import GraphBuilder

from magi_core.errors import MagiError
from magi_core.video import VideoWriter

from . import host, inputs, memory, sockets, values
from .filming import stops
from .loaders import is_checkpoint
from .storyboard import keyframe_states, read_board
from .vae import CHUNK, MagiVAE


class TemporaryName(str):
    """A file's path; the file is removed with the last video that knows it, and cuts of a video share its name."""

    def __init__(self, path: Path) -> None:
        weakref.finalize(self, path.unlink, missing_ok=True)


def temporary_video(path: Path) -> Input.Video:
    """The video in a file that nobody else needs."""
    return InputImpl.VideoFromFile(TemporaryName(path))


class DecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiDecodeVideo",
            display_name="Decode Video (MAGI)",
            category=sockets.CATEGORY,
            description="Decodes latents straight into a video file, second by second, so that a long video needs no more memory than a short one. "
            "What was decoded while it was made is not decoded again. (Core's VAE Decode gives all frames as images.)",
            inputs=[
                io.Latent.Input("latent", tooltip="From 'Chunk Denoise' or 'Extend Video'."),
                inputs.vae(""),
                inputs.fps(),
            ],
            outputs=[io.Video.Output(display_name="video"), io.Image.Output(display_name="last_frame")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], vae: MagiVAE, fps: float) -> io.NodeOutput:
        if not isinstance(vae, MagiVAE):
            raise MagiError(f"vae is a {type(vae).__name__}; connect 'Load MAGI VAE'")
        latents = values.latents_of(latent, vae.latent_channels, 1.0, "latent")
        path, image = host.temporary_path(".mp4"), torch.empty(0)
        filmed = latent.get(values.FILMED)
        if isinstance(filmed, values.Filmed) and filmed.serves(latent, vae.fingerprint(), fps):
            filmed.run.export(path)
            last = filmed.last_frame(vae.decoder(filmed.scale_factor))
            return io.NodeOutput(temporary_video(path), values.image_of(last))
        with VideoWriter(path, fps=fps) as writer, memory.out_of_memory(lambda: "close other programs that use it"):
            for part in host.counted(latents.split(CHUNK, dim=2), cls.hidden.unique_id):
                image = vae.decode(part)[0]
                writer.append((image * 255).to(torch.uint8).numpy())
        return io.NodeOutput(temporary_video(path), image[-1:].clone())


class Video(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiVideo",
            display_name="MAGI Video",
            category=sockets.CATEGORY,
            description="One box: a storyboard goes in, a video comes out. Give a picture to start from, or a session to go on with. "
            "Everything inside can also be built from the other MAGI nodes.",
            enable_expand=True,
            inputs=[
                inputs.storyboard_text("storyboard"),
                inputs.choice(
                    "model",
                    host.choices(None, is_checkpoint),
                    "magi-nano, or a checkpoint below models/magi with its text encoder and VAE beside it.",
                ),
                *inputs.size(),
                inputs.seed(),
                io.Image.Input("image", optional=True, tooltip="A picture that becomes the first frame."),
                sockets.Session.Input(
                    "session", optional=True, tooltip="Go on with this session; size and seed are the session's own."
                ),
                *inputs.going_on(),
            ],
            outputs=[
                io.Video.Output(display_name="video"),
                io.Image.Output(display_name="last_frame"),
                sockets.Session.Output(display_name="session"),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, storyboard: str | None, model: str | None, width: int | None, height: int | None
    ) -> bool | str:
        return values.checked(
            lambda: values.check_choice("model", model, host.choices(None, is_checkpoint)),
            lambda: values.check_size(0 if width is None else width, 0 if height is None else height),
            lambda: storyboard is None or read_board(storyboard),
        )

    @classmethod
    def fingerprint_inputs(cls, storyboard: str | None, **_: Any) -> Any:
        return [stops(), keyframe_states(storyboard)]

    @classmethod
    def execute(
        cls,
        storyboard: str,
        model: str,
        width: int,
        height: int,
        seed: int,
        image: Any = None,
        session: Any = None,
        on_repeat: str = inputs.GO_ON,
        review_every: int = 0,
    ) -> io.NodeOutput:
        if image is not None and session is not None:
            raise MagiError("connect either image or session: a session goes on with its own last frame")
        graph = GraphBuilder()
        story = graph.node("MagiStoryboard", text=storyboard)
        clip = graph.node("MagiLoadTextEncoder", text_encoder=model, device="auto")
        spoken = {"style": "none", "motion": "none", "high_quality": False, "countdown": False, "negative": False}
        said = graph.node("MagiEncodeStoryboard", clip=clip.out(0), storyboard=story.out(0), **spoken)
        vae = graph.node("MagiLoadVAE", vae=model, precision="auto")
        network = graph.node("MagiLoadModel", model=model, precision="auto")
        common = {
            "model": network.out(0),
            "conditioning": said.out(0),
            "vae": vae.out(0),
            "seed": seed,
            "fit": "crop",
            "finish": True,
            "more_to_come": 0,
            "on_repeat": on_repeat,
            "review_every": review_every,
        }
        if session is not None:
            made = graph.node("MagiExtendVideo", session=session, **common)
        else:
            own = {"steps": 0, "window": 0, "guidance": 0.0, "kv_ranges": ""}
            start = {} if image is None else {"start_image": image}
            made = graph.node("MagiChunkDenoise", width=width, height=height, **own, **start, **common)
        shown = graph.node("MagiDecodeVideo", latent=made.out(0), vae=vae.out(0), fps=24.0)
        return io.NodeOutput(shown.out(0), shown.out(1), made.out(1), expand=graph.finalize())


NODES: list[Any] = [DecodeVideo, Video]
