"""Inputs that several nodes have, declared once: the same words, limits and tooltips wherever they stand.

Functions, since every node gets inputs of its own. ``note`` is one more sentence that only this node's tooltip says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from magi_core.config import MAX_STEPS
from magi_core.denoise.noise import SEEDS
from magi_core.plan import MAX_MORE_TO_COME
from magi_core.storyboard import MAX_SHOT_SECONDS

from . import sockets, values
from .sampling import ANCHORS, MOST_IN_FLIGHT

FITS = ["crop", "pad", "stretch"]
GO_ON, START_OVER = REPEATS = ["go on", "start over"]
EXAMPLE = "1s: a red circle moves right\n1s: the circle turns blue and moves up"


def choice(name: str, options: Sequence[str], tooltip: str, **more: Any) -> Any:
    """A list to choose from; the first is the default."""
    return io.Combo.Input(name, options=list(options), default=options[0], tooltip=tooltip, **more)


def storyboard_text(name: str, note: str = "") -> Any:
    return io.String.Input(
        name,
        multiline=True,
        default=EXAMPLE,
        tooltip="One line a shot: '2s: what is seen'. A plain line lasts one second. " + note + "JSON works too.",
    )


def fps() -> Any:
    tooltip = "Frames per second; MAGI-1 was made for 24."
    return io.Float.Input("fps", default=24.0, min=1.0, max=240.0, step=1.0, tooltip=tooltip)


def size() -> list[Any]:
    """Width and height in pixels."""
    tooltip = "In pixels, a multiple of 16. 0: what the model was made for (magi-nano 64, MAGI-1 720)."
    limits = {"default": 0, "min": 0, "max": values.LARGEST, "step": values.PIXELS}
    return [io.Int.Input(name, tooltip=tooltip, **limits) for name in ("width", "height")]


def seed(note: str = "") -> Any:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=SEEDS - 1,
        control_after_generate=True,
        tooltip="The same seed gives the same video on the same device." + note,
    )


def sampling(note: str = "", **more: Any) -> list[Any]:
    """How chunks are denoised: 0 and "" leave the model's own, see ``sampling_with``."""
    return [
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=MAX_STEPS,
            tooltip="Denoise steps of every chunk, a multiple of the window. More is finer and slower. 0: the model's own."
            + note,
            **more,
        ),
        io.Int.Input(
            "window",
            default=0,
            min=0,
            max=MOST_IN_FLIGHT,
            tooltip="Chunks denoised at once. Fewer need less memory and know less of what comes. 0: the model's own (4)."
            + note,
            **more,
        ),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=30.0,
            step=0.5,
            tooltip="How closely the prompt is followed. 0: the model's own. Distilled models have it built in." + note,
            **more,
        ),
        io.String.Input(
            "kv_ranges",
            default="",
            tooltip="How many chunks back are seen, from the noisiest stage to the cleanest, like 5,4,3,2. Empty: the model's own."
            + note,
            **more,
        ),
    ]


def sigmas(note: str = "") -> Any:
    return io.Sigmas.Input(
        "sigmas",
        optional=True,
        tooltip="Noise levels of the denoise steps, falling from 1 to 0, in place of the model's own curve; their number sets the steps. "
        "For base models." + note,
    )


def history_guidance(note: str = "") -> Any:
    return io.Float.Input(
        "history_guidance",
        display_name="history guidance",
        default=0.0,
        min=0.0,
        max=30.0,
        step=0.5,
        optional=True,
        tooltip="How closely what the seconds before show is followed; more keeps longer what the prompt does not say again. "
        "0: the model's own. Distilled models have it built in." + note,
    )


def anchor(note: str = "") -> Any:
    return choice(
        "anchor",
        list(ANCHORS),
        "on: the first chunk stays in sight for as long as the video goes on, so that what it shows is not lost little by little; a keyframe "
        "begins a scene, and its chunk takes that place. model's own: on for magi-nano-full, off for all others, which were not taught it."
        + note,
        optional=True,
    )


def fit() -> Any:
    return choice("fit", FITS, "How pictures and clips of another shape get the video's shape.")


def finish() -> Any:
    return io.Boolean.Input(
        "finish",
        default=True,
        tooltip="On: all chunks are finished. Off: the last ones stay in flight in the session, so that 'Extend Video' goes on "
        "without a seam, as if it had been planned from the start.",
    )


def more_to_come() -> Any:
    return io.Int.Input(
        "more_to_come",
        display_name="chunks to come",
        default=0,
        min=0,
        max=MAX_MORE_TO_COME,
        tooltip="Chunks, each a second of video, that will be added later with 'Extend Video'. Counted by the countdown of 'Encode Storyboard'.",
    )


def seconds() -> Any:
    return io.Float.Input(
        "seconds",
        optional=True,
        default=4.0,
        min=0.05,
        max=MAX_SHOT_SECONDS,
        step=0.5,
        tooltip="How long the prompt is shown, where the conditioning comes from core's CLIP Text Encode, which does not say. A storyboard says it itself.",
    )


def vae(need: str, **more: Any) -> Any:
    return io.Vae.Input("vae", tooltip="From 'Load MAGI VAE'." + need, **more)


def going_on() -> list[Any]:
    """What becomes of a run that was broken off, and whether somebody looks at it meanwhile."""
    return [
        choice(
            "on_repeat",
            REPEATS,
            "When the same thing is asked for again. go on: what was cancelled or crashed is finished, what is finished is not made "
            "again. start over: another take, in a folder of its own.",
            optional=True,
        ),
        io.Int.Input(
            "review_every",
            optional=True,
            default=0,
            min=0,
            max=1000,
            tooltip="Pause after every so many chunks, to approve them, to make the last ones again with another seed or prompt, or to stop. 0: never.",
        ),
    ]


def made() -> dict[str, Any]:
    """What a node that denoises gives, and what it must know to say how far it is."""
    outputs = [io.Latent.Output(display_name="latent"), sockets.Session.Output(display_name="session")]
    hidden = [io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.dynprompt]
    return {"outputs": outputs, "hidden": hidden}
