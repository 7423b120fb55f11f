"""From a planned generation to a video file, kept in a run's folder on the way; and `magi resume`, which finishes such a run."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from itertools import count
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from magi_core.checkpoint.find import BUILT_IN
from magi_core.cli.model import OPTIONS, open_asked, sharing
from magi_core.errors import MagiError
from magi_core.lora import Lora
from magi_core.storyboard import Storyboard

if TYPE_CHECKING:
    from magi_core.denoise import Progress
    from magi_core.generation import Generation
    from magi_core.keeping import Run
    from magi_core.making import Decode, Making

RUN = ".run"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    resume = commands.add_parser(
        "resume", help="finish a video that was broken off, to the same bits unless --reuse is used"
    )
    resume.add_argument("folder", type=Path, help="the run's folder")
    resume.add_argument(
        "-o", "--output", type=Path, help=".mp4, .webm, or a folder for PNGs (default: as it was begun)"
    )
    resume.add_argument(
        "--devices", metavar="0,1", help="let these devices go on with the video together (default: as it was begun)"
    )
    resume.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    resume.set_defaults(run=run_resume)


def add_output(parser: argparse.ArgumentParser) -> None:
    """What `generate` and `extend` are told about their result."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out/magi.mp4"), help=".mp4, .webm, or a folder for PNGs"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="keep the run, with every chunk's latents, in this new folder (default: beside the output until it is finished)",
    )
    parser.add_argument("--save-session", type=Path, metavar="FILE", help="save a session to extend the video later")
    parser.add_argument(
        "--leave-in-flight",
        action="store_true",
        help="stop before the last chunks are finished; extend then goes on seamlessly",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")


def write(generation: Generation, decode: Decode, arguments: argparse.Namespace, storyboard: Storyboard | None) -> int:
    """Make a video that ``generate`` or ``extend`` planned."""
    from magi_core.keeping import Asked, Run
    from magi_core.video import check_target

    making, drain = generation.making, not arguments.leave_in_flight
    if making.finished():
        raise MagiError("there is nothing left to make; give --prompt or --storyboard to go on")
    check_target(arguments.output)
    folder = arguments.keep or _free(arguments.output)
    _check_outside(folder, arguments.output, arguments.save_session)
    session = making.session
    made_with = {
        "model": arguments.model,
        "lora": [f"{lora.path.name}:{lora.strength:g}" for lora in arguments.lora],
        "seed": session.seed,
        "sampling": asdict(session.sampling),
    }
    story = storyboard.to_json() if storyboard else ""
    # Wherever the run is gone on with from.
    model = arguments.model if arguments.model in BUILT_IN else str(Path(arguments.model).expanduser().absolute())
    settings = {
        "output": str(arguments.output.absolute()),
        "session": str(arguments.save_session.absolute()) if arguments.save_session else None,
        "kept": arguments.keep is not None,
        "lora": [lora.document() for lora in arguments.lora],
        **{name: getattr(arguments, name) for name in OPTIONS},
        "model": model,
    }
    metadata = {"prompt": story, "settings": json.dumps(made_with)}
    asked = Asked(story, model, Fraction(generation.fps), drain, settings, metadata)
    run = Run.create(folder, asked, making)
    return make(run, making, decode, arguments.output, quiet=arguments.quiet)


def run_resume(arguments: argparse.Namespace) -> int:
    from magi_core.keeping import Run
    from magi_core.video import check_target

    run = Run.open(arguments.folder)
    settings = run.asked.settings
    if not {"output", *OPTIONS} <= settings.keys():
        raise MagiError(f"the run {run.folder} was not made by the command line; go on with it where it was made")
    output = arguments.output or Path(settings["output"])
    check_target(output)
    _check_outside(run.folder, output, Path(settings["session"]) if settings["session"] else None)
    loras = [Lora.of_document(document) for document in settings.get("lora", [])]
    options = {name: settings[name] for name in OPTIONS}
    if arguments.devices is not None:
        options["devices"] = arguments.devices
    asked = argparse.Namespace(text_cache=None, lora=loras, **options)
    magi = open_asked(asked)
    making = run.load(magi.dit_for(run.folder), loras=magi.used_loras)
    with sharing(asked, magi) as within, within(making) as decode:
        return make(run, making, decode, output, quiet=arguments.quiet)


def make(run: Run, making: Making, decode: Decode, output: Path, *, quiet: bool) -> int:
    """Make what is missing of a run, then the output file. Ctrl-C, or whatever ends the process, loses nothing: `magi resume` goes on."""
    from magi_core.live import Live, produce
    from magi_core.run_lock import alone

    go_on = f"go on with: magi resume {run.folder}"
    interrupted = False
    with (
        held_ctrl_c() as pressed,
        alone(run.folder),
        _bar(making, pressed, quiet) as watch,
        Live(decode, run=run) as live,
    ):
        try:
            for _ in produce(making, run=run, live=live, watch=watch):
                pass
        except KeyboardInterrupt:
            interrupted = not making.finished(drain=run.asked.drain)
    for problem in (run.problem, live.problem):
        if problem is not None:
            raise MagiError(f"{problem}; then {go_on}")
    frames = sum(fragment.frames for fragment in run.fragments)
    if interrupted:
        shown = run.folder
        if output.suffix.lower() == ".mp4" and frames:
            run.export(output)
            shown = output
        sys.stderr.write(f"interrupted; what is finished is in {shown}, {go_on}\n")
        return 130
    if session := run.asked.settings["session"]:
        making.save(Path(session))
    if not frames:
        raise MagiError(
            f"no chunk was finished, so there is no video yet; go on with: magi extend {session or run.folder}"
        )
    _export(run, decode, output)
    sys.stdout.write(f"{output}: {frames} frames, {float(frames / run.asked.fps):.2f} s\n")
    if not run.asked.settings["kept"]:
        shutil.rmtree(run.folder)
    return 0


def _export(run: Run, decode: Decode, output: Path) -> None:
    """The whole video: an MP4 as it is, anything else decoded once more."""
    from magi_core.video import VideoWriter

    if output.suffix.lower() == ".mp4":
        run.export(output)
        return
    with VideoWriter(output, fps=run.asked.fps, metadata=run.asked.metadata) as writer:
        for index in range(run.first, run.end):
            writer.append(run.chunk(index).decoded(decode))


def _check_outside(folder: Path, *results: Path | None) -> None:
    """Raise MagiError where a result would lie among the files of the run in ``folder``, which is removed when it is finished."""
    for result in results:
        if result is not None and folder.resolve() in (result.resolve(), *result.resolve().parents):
            raise MagiError(f"{result} lies in the run's own folder {folder}; choose a place outside of it")


def _free(output: Path) -> Path:
    """A folder beside the output that is not there yet: an unfinished run is not written over."""
    names = (f"{output.stem}{'' if number == 1 else f'-{number}'}{RUN}" for number in count(1))
    return next(folder for name in names if not (folder := output.absolute().with_name(name)).exists())


@contextmanager
def held_ctrl_c() -> Iterator[Event]:
    """Ctrl-C sets the event, so that the step can end; pressed again, it breaks off."""
    pressed = Event()

    def note(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        sys.stderr.write("\nstopping after this step; press Ctrl-C again to break it off\n")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bar(making: Making, pressed: Event, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """What watches the steps: on the terminal a bar that counts them and names the chunks in flight. Raises once Ctrl-C was ``pressed``."""
    from tqdm import tqdm

    steps = making.progress
    with tqdm(total=steps.total, initial=steps.steps, unit="step", disable=quiet, file=sys.stderr) as bar:

        def watch(progress: Progress) -> None:
            bar.set_postfix_str(" ".join(f"chunk {c}: {n}" for c, n in progress.chunks.items()), refresh=False)
            bar.update(progress.steps - bar.n)
            if pressed.is_set():
                raise KeyboardInterrupt

        yield watch
