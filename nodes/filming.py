"""From a planned video to what a node gives: its run on disk, what clients are told meanwhile, latents and session at the end."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management as management
import folder_paths
from comfy.cli_args import args
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from server import PromptServer

from magi_core.cost.memory import Use
from magi_core.errors import MagiError
from magi_core.images import Frames
from magi_core.keeping import Asked, Run
from magi_core.making import Making
from magi_core.run_folders import prune
from magi_core.storyboard import Shot

from . import host, inputs, memory, sockets, values
from .kept import NEWEST, Place, run_name
from .live import Studio, Words, Work
from .making import PATCH
from .prompts import as_queued
from .running import lighter, load, model_of, used_by, with_loras
from .runs import About, KeptStrip, Runs
from .settings import SETTINGS, Settings, read_settings
from .strips import write_strip
from .timeline import leading_frames, timeline
from .users import Users
from .vae import MagiVAE

log = logging.getLogger(__name__)

STOPS = Counter[str]()
"""How often a run was stopped at a review, by the ids of its node and of the box that it is in."""
RUNS = Runs(lambda name, content: PromptServer.instance.send_sync(name, content))
USERS = Users()
"""Of this server. Nodes and routes are called by ComfyUI and share nothing else."""


@dataclass(frozen=True, eq=False)
class Request:
    """What a node was asked, besides the session that it begins with."""

    model: ModelPatcher
    use: Use
    said: values.Said
    vae: MagiVAE | None
    drain: bool
    on_repeat: str
    review_every: int
    hidden: Any


def stops() -> int:
    """What a node that makes videos answers when ComfyUI asks whether to run it again: a run that was stopped is not finished."""
    context = get_executing_context()
    return 0 if context is None else STOPS[context.node_id]


def run_folder() -> Path:
    """Where runs are kept, in ComfyUI's output folder."""
    return Path(folder_paths.get_output_directory()) / host.MODELS


def made(request: Request, build: Callable[[], Making]) -> io.NodeOutput:
    """Make what ``build`` has planned, or what is missing of it; the latents, and the session as a file.

    build: is called again where the model was moved meanwhile. Raises MagiError when there is nothing to finish.
    """
    held, settings = model_of(request.model), _settings()
    start = build()
    end = start.end(drain=request.drain)
    if start.finished(drain=request.drain) or end <= start.next_chunk:
        raise MagiError(
            "no chunk was finished: the storyboard is shorter than the window and 'finish' is off. "
            "Switch 'finish' on, or make the storyboard longer"
        )
    beside = {
        "finish": request.drain,
        "fp8": held.fp8,
        "attention": held.attention,
        "vae": "" if request.vae is None else request.vae.fingerprint(),
    }
    place = Place(run_folder(), run_name(start, beside))
    problems: list[str] = []

    def warn(text: str) -> None:
        log.warning("%s", text)
        problems.append(text)

    run, making, place = _opened(place, request, start, settings, warn)
    if not making.finished(drain=request.drain) and _load(request):
        making = build() if run is None else run.load(held.dit, loras=used_by(request.model))
    session = making.session
    plans, leading, before, first = start.pending, leading_frames(start), start.progress.steps, start.next_chunk
    del start  # where another one goes on, this one's keys and values are in the way
    own = str(request.hidden.unique_id)
    shown = str(request.hidden.dynprompt.get_display_node_id(own))
    about = About(
        run=place.name,
        node=shown,
        prompt_id=getattr(get_executing_context(), "prompt_id", ""),
        fps=float(held.config.fps),
        width=session.width * PATCH,
        height=session.height * PATCH,
        seed=session.seed,
        shots=timeline(plans, end, held.config.fps, leading).shots,
        first=first,
        end=end,
        next=making.next_chunk,
        window=session.sampling.window_size,
        review_every=request.review_every,
        previews=settings.preview and request.vae is not None,
        workflow=((request.hidden.extra_pnginfo or {}).get("workflow") or {}).get("id"),
        take=place.take,
        warning="; ".join(problems) or None,
        folder=None if run is None else place.shown,
        session=None if run is None else f"{place.shown}/{NEWEST} [output]",
    )
    told = RUNS.begin(about)
    studio = _studio(request, settings, run)
    work = Work(run, place, making, told, studio, plans, leading, before, about.warning)
    with memory.out_of_memory(lambda: lighter(request.use)), with_loras(request.model):
        work.make()
    if told.about.state == "stopped":
        STOPS.update({own, shown})
    if held.workers is not None:
        held.workers.give_back(work.making.session)
    samples = work.latents.div_(held.config.scale_factor)
    latent: dict[str, Any] = {"samples": samples}
    if work.run is not None and request.vae is not None:
        latent[values.FILMED] = values.Filmed(work.run, request.vae.fingerprint(), held.config.scale_factor, samples)
    return io.NodeOutput(latent, _session(work.making))


def _opened(
    place: Place, request: Request, start: Making, settings: Settings, warn: Callable[[str], None]
) -> tuple[Run | None, Making, Place]:
    """The run to go on with, or a new one, and where it stands. None where the folder cannot be written; ``warn`` is told of all that is wrong."""
    held = model_of(request.model)
    if request.on_repeat == inputs.GO_ON:
        for take in place.takes():
            try:
                run = Run.open(take.folder)
                making = run.load(held.dit, warn, loras=used_by(request.model))
                for index in range(run.first, making.next_chunk):
                    run.chunk(index)  # one that cannot be read would end the run whenever it is asked for
                return run, making, take
            except MagiError as error:
                warn(f"{error}. This take is left as it is, and another one used")
    place = place.next()
    storyboard = request.said.board.storyboard
    shots = list(dict.fromkeys(start.pending[number].prompt for number in sorted(start.pending)))
    asked = Asked(
        storyboard.to_json(),
        held.files.name,
        Fraction(held.config.fps),
        request.drain,
        {"shots": shots},
        _metadata(request.hidden),
    )
    try:
        if settings.folder_bytes:
            prune(place.root, settings.folder_bytes)
    except OSError as error:
        warn(f"old runs are not removed, so {place.root} may become larger than it should: {error}")
    try:
        return Run.create(place.folder, asked, start), start, place
    except (MagiError, OSError) as error:
        warn(
            f"{error}. The video is made all the same, and kept in memory only: it is lost if ComfyUI ends, and a review cannot ask for another take"
        )
        return None, start, place


def _studio(request: Request, settings: Settings, run: Run | None) -> Studio:
    said, vae = request.said, request.vae
    begun = run is not None and run.video.exists()  # with previews; without its end the run would never be finished
    held = model_of(request.model)
    words = None
    if said.encode is not None:
        board = said.board.storyboard
        words = Words(lambda text: board.prompt_of(Shot(text, 1.0)), said.encode, held.special_tokens(), said.tokens)

    def strip(index: int, frames: Frames) -> KeptStrip | None:
        if not settings.preview:
            return None
        try:
            path = host.temporary_path(f"_{index:06d}.jpg")
            written = write_strip(path, frames, settings.preview_height)
        except MagiError as error:
            log.warning("chunk %d is not shown: %s", index, error)
            return None
        RUNS.bound_strips()
        return KeptStrip(path, {"filename": path.name, "subfolder": path.parent.name, "type": "temp"}, written)

    return Studio(
        decode=None if vae is None or not (settings.preview or begun) else vae.decoder(held.config.scale_factor),
        strip=strip,
        watch=host.watcher(request.hidden.unique_id),
        check=management.throw_exception_if_processing_interrupted,
        cancelled=management.InterruptProcessingException,
        ready=lambda: _load(request),
        hand_over=lambda session: None if held.workers is None else held.workers.take(session),
        words=words,
        drain=request.drain,
        review_every=request.review_every,
    )


def _load(request: Request) -> bool:
    """Put the transformer, and the VAE beside it, on the device."""
    return load(request.model, request.use, request.vae)


def _session(making: Making) -> sockets.SessionFile | sockets.HeldSession:
    try:
        path = host.temporary_path(".session")
        making.save(path)
    except MagiError as error:
        log.warning("%s; the session is kept in memory", error)
        return sockets.HeldSession(making)
    return sockets.SessionFile(path, temporary=True)


def _settings() -> Settings:
    own = Path(folder_paths.get_user_directory()) / "default" / SETTINGS
    return read_settings(USERS.settings_file(PromptServer.instance.client_id, own))


def _metadata(hidden: Any) -> dict[str, str]:
    """What core's Save Video writes into a video."""
    if args.disable_metadata:
        return {}
    prompt = {} if hidden.prompt is None else {"prompt": as_queued(hidden.prompt)}
    known = {**(hidden.extra_pnginfo or {}), **prompt}
    return {name: json.dumps(value) for name, value in known.items()}
