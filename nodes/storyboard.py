"""What is to be seen: shots, storyboards, keyframes, the plan of chunks, and prompts turned into conditioning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from magi_core.errors import MagiError
from magi_core.images import read_keyframe
from magi_core.plan import plan
from magi_core.storyboard import MAX_SHOT_SECONDS, Shot
from magi_core.storyboard import Storyboard as Board
from magi_core.text.special_tokens import PromptTokens

from . import host, inputs, sockets, values
from .picture import draw_plan
from .text import encode_prompts

STYLES = {"none": {}, "3D animation": {"three_d_model": True}, "2D animation": {"two_d_anime": True}}
MOTIONS = {"none": {}, "still start": {"static_first_frames": True}, "moving start": {"dynamic_first_frames": True}}


def read_board(text: str) -> values.Board:
    """A storyboard from its text or JSON form, with the keyframes it names from ComfyUI's input folder."""
    storyboard = Board.from_string(text)
    folder = host.input_folder()
    named = ((number, shot.keyframe) for number, shot in enumerate(storyboard.shots))
    return values.Board(storyboard, {n: read_keyframe(name, folder) for n, name in named if name is not None})


def keyframe_states(text: str | None) -> list[tuple[int, int] | None]:
    """What is another once a picture that ``read_board`` reads was replaced: time of change in ns and bytes of each, None where there is none.

    text: None, and without pictures, where it is linked: then it is known when it runs.
    """
    try:
        shots = () if text is None else Board.from_string(text).shots
    except MagiError:  # said elsewhere
        shots = ()
    return [_state(host.input_folder() / shot.keyframe) for shot in shots if shot.keyframe is not None]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except (OSError, ValueError):  # said where it is read
        return None
    return state.st_mtime_ns, state.st_size


class ShotNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiShot",
            display_name="Shot (MAGI)",
            category=sockets.CATEGORY,
            description="One prompt for some seconds. Chain shots: the storyboard of one goes into the next.",
            inputs=[
                io.String.Input(
                    "prompt", multiline=True, default="a red circle moves right", tooltip="What is seen in this shot."
                ),
                io.Float.Input(
                    "seconds",
                    default=2.0,
                    min=0.05,
                    max=MAX_SHOT_SECONDS,
                    step=0.5,
                    tooltip="How long the shot lasts. Prompts change at whole seconds: MAGI makes video in chunks of one second.",
                ),
                sockets.Storyboard.Input(
                    "storyboard", optional=True, tooltip="The shots before this one. Leave it open for the first shot."
                ),
                io.Image.Input(
                    "keyframe",
                    optional=True,
                    tooltip="A picture that this shot starts from. It is cut to the video's shape.",
                ),
            ],
            outputs=[sockets.Storyboard.Output(display_name="storyboard")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None, seconds: float | None) -> bool | str:
        if prompt is None or seconds is None:  # linked: known when it runs
            return True
        return values.checked(lambda: Board((Shot(prompt, seconds),)))

    @classmethod
    def execute(
        cls,
        prompt: str,
        seconds: float,
        storyboard: values.Board | None = None,
        keyframe: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        image = values.first_image(keyframe, "keyframe")
        return io.NodeOutput(values.add_shot(storyboard, prompt, seconds, image))


class StoryboardNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiStoryboard",
            display_name="Storyboard (MAGI)",
            category=sockets.CATEGORY,
            description="A whole storyboard as text, one line a shot, or as JSON.",
            inputs=[
                inputs.storyboard_text(
                    "text",
                    "'prefix: ...' in the first line is put before every prompt; '[image: name.png]' at a line's end is a keyframe "
                    "from ComfyUI's input folder. ",
                ),
            ],
            outputs=[sockets.Storyboard.Output(display_name="storyboard")],
        )

    @classmethod
    def validate_inputs(cls, text: str | None) -> bool | str:
        return text is None or values.checked(lambda: read_board(text))

    @classmethod
    def fingerprint_inputs(cls, text: str | None, **_: Any) -> Any:
        return keyframe_states(text)

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput(read_board(text))


class Keyframe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiKeyframe",
            display_name="Keyframe (MAGI)",
            category=sockets.CATEGORY,
            description="Puts a picture into a storyboard: the video starts from it at that second. It is held at the nearest whole second.",
            inputs=[
                sockets.Storyboard.Input("storyboard", tooltip="The storyboard that gets the picture."),
                io.Image.Input(
                    "image", tooltip="The picture. It is cut to the video's shape; of several the first is taken."
                ),
                io.Float.Input(
                    "second",
                    default=0.0,
                    min=0.0,
                    max=36_000.0,
                    step=0.5,
                    tooltip="When the picture is shown, counted from the storyboard's start. Must be before its end.",
                ),
            ],
            outputs=[sockets.Storyboard.Output(display_name="storyboard")],
        )

    @classmethod
    def execute(cls, storyboard: values.Board, image: torch.Tensor, second: float) -> io.NodeOutput:
        return io.NodeOutput(storyboard.with_keyframe(values.frames_of(image[:1], "image")[0], second))


class PlanNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiPlan",
            display_name="Plan (MAGI)",
            category=sockets.CATEGORY,
            description="Shows which chunk of the video gets which prompt, without loading any model.",
            is_output_node=True,
            inputs=[
                sockets.Storyboard.Input("storyboard", tooltip="The storyboard to lay out."),
                inputs.fps(),
            ],
            outputs=[
                io.String.Output(display_name="table"),
                io.Image.Output(display_name="picture"),
            ],
        )

    @classmethod
    def execute(cls, storyboard: values.Board, fps: float) -> io.NodeOutput:
        layout = plan(storyboard.storyboard, fps)
        table, picture = layout.table(), values.image_of(draw_plan(layout)[None])
        shown = {**ui.PreviewImage(picture, cls=cls).as_dict(), "text": [table]}
        return io.NodeOutput(table, picture, ui=shown)


class EncodeStoryboard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiEncodeStoryboard",
            display_name="Encode Storyboard (MAGI)",
            category=sockets.CATEGORY,
            description="Turns a storyboard's prompts into conditioning, one entry a shot. Each distinct prompt is encoded once, and kept.",
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="'Load MAGI Text Encoder', or 'Load CLIP' with a t5xxl file and type mochi or ltxv."
                ),
                sockets.Storyboard.Input("storyboard", tooltip="What is to be seen."),
                inputs.choice(
                    "style",
                    list(STYLES),
                    "A special token before every prompt that says what kind of picture is wanted.",
                ),
                inputs.choice(
                    "motion", list(MOTIONS), "A special token that says whether the first frames stand still or move."
                ),
                io.Boolean.Input(
                    "high_quality",
                    default=False,
                    tooltip="The special token for high quality. Good for the released models; magi-nano has not learned it.",
                ),
                io.Boolean.Input(
                    "countdown",
                    default=False,
                    tooltip="Tell every chunk how many are still to come. Good for the released models; magi-nano has not learned it.",
                ),
                io.Boolean.Input(
                    "negative",
                    default=False,
                    tooltip="Steer away from borders, logos, captions and transitions. Needs the model's special_tokens.npz.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def validate_inputs(cls, style: str | None, motion: str | None) -> bool | str:
        return values.checked(
            lambda: values.check_choice("style", style, list(STYLES)),
            lambda: values.check_choice("motion", motion, list(MOTIONS)),
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        storyboard: values.Board,
        style: str,
        motion: str,
        high_quality: bool,
        countdown: bool,
        negative: bool,
    ) -> io.NodeOutput:
        tokens = PromptTokens(high_quality=high_quality, duration=countdown, **STYLES[style], **MOTIONS[motion])
        board = storyboard.storyboard
        captions = encode_prompts(clip, [board.prompt_of(shot) for shot in board.shots])
        said = values.Said(storyboard, tokens, negative, encode=lambda prompts: encode_prompts(clip, prompts))
        return io.NodeOutput(values.conditioning_of(captions, said))


NODES: list[Any] = [ShotNode, StoryboardNode, Keyframe, PlanNode, EncodeStoryboard]
