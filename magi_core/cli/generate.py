"""`magi generate`, `magi extend`, `magi plan`: from prompts to a video file."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from magi_core.cli.model import add_guidance, add_model, add_sampling, open_asked, sampling_asked, sharing
from magi_core.cli.produce import add_output, write
from magi_core.errors import MagiError
from magi_core.storyboard import Shot, Storyboard, is_file_name

if TYPE_CHECKING:
    from magi_core.wishes import Wishes

TOKENS = {
    "high-quality": "high_quality",
    "static-first-frames": "static_first_frames",
    "dynamic-first-frames": "dynamic_first_frames",
    "borderness": "borderness",
    "3d-model": "three_d_model",
    "2d-anime": "two_d_anime",
    "duration": "duration",
}
"""Special tokens: the name on the command line, the switch in ``PromptTokens``."""

DEFAULT_SECONDS = 4.0


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    generate = commands.add_parser("generate", help="make a video from a prompt or a storyboard")
    _add_story(generate, required=True)
    start = generate.add_mutually_exclusive_group()
    start.add_argument("--image", type=Path, help="start from this picture")
    start.add_argument("--video", type=Path, help="continue this video (its frames are not repeated in the output)")
    generate.add_argument("--size", metavar="WxH", help="size in pixels, multiples of 16 (default: the model's)")
    generate.add_argument("--seed", type=int, help="the same seed gives the same video (default: the model's)")
    generate.add_argument(
        "--negative", action="store_true", help="steer away from borders, logos, captions and transitions"
    )
    add_sampling(generate)
    add_guidance(generate)
    add_model(generate)
    _add_wishes(generate)
    add_output(generate)
    generate.set_defaults(run=run_generate)

    extend = commands.add_parser("extend", help="go on from a saved session, exactly where it stopped")
    extend.add_argument("session", type=Path, help="a .session file of an earlier generate or extend, or a kept run")
    _add_story(extend, required=False)
    add_model(extend)
    _add_wishes(extend)
    add_output(extend)
    extend.set_defaults(run=run_extend)

    plan = commands.add_parser("plan", help="show which chunk gets which prompt; loads no model")
    _add_story(plan, required=True)
    plan.set_defaults(run=run_plan)


def _add_story(parser: argparse.ArgumentParser, *, required: bool) -> None:
    story = parser.add_mutually_exclusive_group(required=required)
    story.add_argument("--prompt", help="one prompt for the whole video")
    story.add_argument(
        "--storyboard", help="a .txt or .json file, or its text, one line a shot like '2s: a red circle moves right'"
    )
    parser.add_argument("--seconds", type=float, help="length with --prompt (default: 4)")


def _add_wishes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", nargs="*", default=[], choices=TOKENS, help="special tokens before every prompt")
    parser.add_argument(
        "--fit", choices=("crop", "pad", "stretch"), default="crop", help="how pictures get the video's size"
    )
    parser.add_argument("--more-to-come", type=int, default=0, metavar="CHUNKS", help="chunks a later extend will add")


def run_plan(arguments: argparse.Namespace) -> int:
    from magi_core.plan import plan

    sys.stdout.write(plan(_story(arguments)[0]).table() + "\n")
    return 0


def run_generate(arguments: argparse.Namespace) -> int:
    from magi_core.images import read_image
    from magi_core.pipeline import context_frames
    from magi_core.video import read_video

    storyboard, folder = _story(arguments)
    magi = open_asked(arguments)
    height, width = parse_size(arguments.size)
    sampling = sampling_asked(arguments, magi)
    asked = {"height": height, "width": width, "seed": arguments.seed, "negative": arguments.negative}
    wishes = replace(_wishes(arguments), **asked, sampling=sampling)
    image = read_image(arguments.image) if arguments.image else None
    last = context_frames(sampling)
    video = read_video(arguments.video, fps=magi.config.fps, last=last) if arguments.video else None
    generation = magi.generate(storyboard, image=image, video=video, wishes=wishes, folder=folder)
    with sharing(arguments, magi) as within, within(generation.making) as decode:
        return write(generation, decode, arguments, storyboard)


def run_extend(arguments: argparse.Namespace) -> int:
    storyboard, folder = _story(arguments) if _asked(arguments) else (None, None)
    magi = open_asked(arguments)
    generation = magi.extend(arguments.session, storyboard, wishes=_wishes(arguments), folder=folder)
    with sharing(arguments, magi) as within, within(generation.making) as decode:
        return write(generation, decode, arguments, storyboard)


def _asked(arguments: argparse.Namespace) -> bool:
    return any(wish is not None for wish in (arguments.prompt, arguments.storyboard, arguments.seconds))


def _story(arguments: argparse.Namespace) -> tuple[Storyboard, Path | None]:
    """The storyboard, and the folder of its file, in which its keyframes lie."""
    if arguments.prompt is not None:
        return Storyboard(
            (Shot(arguments.prompt, DEFAULT_SECONDS if arguments.seconds is None else arguments.seconds),)
        ), None
    if arguments.seconds is not None:
        raise MagiError("--seconds goes with --prompt; a storyboard says how long each of its shots is")
    storyboard = Storyboard.parse(arguments.storyboard)
    path = Path(arguments.storyboard) if is_file_name(arguments.storyboard) else None
    return storyboard, path.resolve().parent if path else Path.cwd()


def _wishes(arguments: argparse.Namespace) -> Wishes:
    from magi_core.text.special_tokens import PromptTokens
    from magi_core.wishes import Wishes

    tokens = PromptTokens(**{TOKENS[name]: True for name in arguments.tokens})
    return Wishes(tokens=tokens, fit=arguments.fit, more_to_come=arguments.more_to_come)


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """(height, width) of "WxH"."""
    if text is None:
        return None, None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise MagiError(f"--size is {text!r}; write width x height in pixels, like 1280x720")
    return int(match[2]), int(match[1])
