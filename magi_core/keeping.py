"""A run on disk: while a video is made, all that is finished and where the rest stands, so that nothing is lost whenever it ends.

A run is a folder (docs/keeping.md has sizes and guarantees):

    run.json                         what is made, with which model
    chunks/000012.safetensors        a finished chunk: latents, and which of their frames are shown
    checkpoints/000013.session       the session with the chunks in flight: the run's start, and the two newest
    video.mp4                        what is decoded so far, playable at any time

Notable:
- Files appear whole, under their name, or not at all, and carry a hash. A damaged checkpoint is refused and the one before it used.
- A chunk is written before the checkpoint behind it. So what is made again after a crash is made to the same bits, and nothing on disk
  ever has to be taken back. Another take of a chunk is another folder.
- A folder that cannot be written while a run goes on is said once. What could not be written waits in memory and is tried again.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

from magi_core.config import Sampling
from magi_core.denoise.storage import OtherModel, fingerprint, read_size
from magi_core.errors import MagiError, shorten, whole_number
from magi_core.files import atomic_write, read_json_object
from magi_core.growing_mp4 import CRF, Fragment, GrowingMp4, copy_mp4, fragments_of
from magi_core.images import Frames
from magi_core.kept_chunks import read_chunk, write_chunk
from magi_core.lora import Used
from magi_core.making import MOST_FRAMES, Finished, Making
from magi_core.model import MagiDiT
from magi_core.plan import checked_fps
from magi_core.video_files import clear_errors

log = logging.getLogger(__name__)

VERSION = 1
ABOUT, CHUNKS, CHECKPOINTS, VIDEO = "run.json", "chunks", "checkpoints", "video.mp4"
NEWEST = 2
"""How many checkpoints are kept besides the start."""


@dataclass(frozen=True)
class Asked:
    """What a run makes, as far as it must be known to list it and to go on with it."""

    storyboard: str
    """In its JSON form."""
    model: str
    """What ``magi_core.load`` takes."""
    fps: Fraction = Fraction(24)
    drain: bool = True
    """Whether the last chunks are finished, see ``Making.chunks``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Anything that JSON can say, of whoever makes the run; given back as it was."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Text entries of the video file, such as ComfyUI's prompt and workflow."""
    crf: int = CRF
    """x264's quality of the video, 0 to 51."""


class Run:
    """``create`` or ``open`` one; give it each finished chunk by ``keep``, and its frames by ``show``."""

    def __init__(self, folder: Path, asked: Asked, first: int, end: int, model: str) -> None:
        self.folder, self.asked, self.model = Path(folder), asked, model
        self.first, self.end = first, end
        """The chunks that it makes are [first, end)."""
        self.problem: MagiError | None = None
        """Why the newest chunks could not be written, while that is so."""
        self._waiting: dict[int, Finished] = {}
        self._kept_steps = -1
        self._growing: GrowingMp4 | None = None

    @classmethod
    def create(cls, folder: Path, asked: Asked, making: Making) -> Run:
        """A new run that begins where ``making`` stands, planned but for nothing. Raises MagiError when ``folder`` is not empty or cannot
        be written; then nothing is left there.
        """
        return cls._build(Path(folder), asked, making, making.next_chunk, lambda folder: None)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run in a folder; raises MagiError when there is none, or its run.json is damaged."""
        path = Path(folder) / ABOUT
        if not path.exists():
            raise MagiError(
                f"there is no run in {folder}: it has no {ABOUT}. A video that is finished needs none, and its folder was removed"
            )
        document = read_json_object(path)
        try:
            if document.pop("sha256") != _hash(document):
                raise ValueError("another hash")
            if document["version"] != VERSION:
                raise MagiError(
                    f"{path} has version {shorten(document['version'])}, this program reads {VERSION}; update comfyui-magi"
                )
            asked = Asked(**{**document["asked"], "fps": checked_fps(Fraction(document["asked"]["fps"]))})
            first, end = (whole_number(name, document[name], 0, MOST_FRAMES) for name in ("first", "end"))
            return cls(Path(folder), asked, first, end, str(document["model"]))
        except MagiError:
            raise
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise MagiError(
                f"{path} is damaged; the chunks and checkpoints beside it can still be used one by one"
            ) from error

    # While it is made

    def keep(self, finished: Finished, making: Making) -> None:
        """Write a chunk, and the checkpoint behind it. Where that fails it is logged once and tried again with the next chunk."""
        self._waiting[finished.index] = finished
        self._write(making)

    def save(self, making: Making) -> None:
        """Write a checkpoint between two chunks, as when the work is broken off, and what is still waiting."""
        if self._waiting or making.progress.steps != self._kept_steps:
            self._write(making)

    def show(self, finished: Finished, frames: Frames) -> Fragment:
        """Append a chunk's frames uint8 [T, H, W, 3] to the video, unless they are there; where they lie.

        Raises MagiError where that cannot be written, or a chunk before is not in the video yet.
        """
        with clear_errors(self.video):
            if self._growing is None:
                self._growing = GrowingMp4(self.video, self.asked.fps, self.asked.metadata, crf=self.asked.crf)
            place, there = finished.index - self.first, len(self._growing.fragments)
            if place > there:
                raise MagiError(
                    f"chunk {finished.index} cannot be added to {self.video} before chunk {self.first + there}"
                )
            return self._growing.fragments[place] if place < there else self._growing.append(frames)

    # How far it is

    @property
    def video(self) -> Path:
        """Where the growing video lies, once there is one."""
        return self.folder / VIDEO

    @property
    def fragments(self) -> tuple[Fragment, ...]:
        """What the video has on disk, one entry a chunk."""
        return fragments_of(self.video)

    @property
    def done(self) -> int:
        """How many chunks are finished and on disk."""
        return len(list((self.folder / CHUNKS).glob("[0-9]*.safetensors")))

    @property
    def finished(self) -> bool:
        """Whether every chunk is there, and, where there is a video, in it too."""
        chunks = self.end - self.first
        return self.done >= chunks and (not self.video.exists() or len(self.fragments) >= chunks)

    @property
    def changed(self) -> float:
        """When a file appeared in it last, in seconds since 1970; 0 where nothing is left of it."""
        states = _states(self.folder / name for name in (ABOUT, CHUNKS, CHECKPOINTS))
        return max((state.st_mtime for state in states), default=0.0)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        files = (Path(parent, name) for parent, _, names in os.walk(self.folder) for name in names)
        return sum(state.st_size for state in _states(files))

    @property
    def checkpoints(self) -> list[Path]:
        """The session files, oldest first: the start, and the newest. Each can also be extended as any session file."""
        return sorted((self.folder / CHECKPOINTS).glob("[0-9]*.session"))

    def size(self) -> tuple[int, int, Sampling]:
        """Height and width of the latents, and the settings, which all checkpoints share; raises MagiError when none can be read."""
        for path in reversed(self.checkpoints):
            with suppress(MagiError):
                return read_size(path)
        raise self._nothing_whole()

    def chunk(self, index: int) -> Finished:
        """A finished chunk; raises MagiError when it is not there, or damaged."""
        waiting = self._waiting.get(index)
        return waiting if waiting is not None else read_chunk(self._chunk_path(index))

    def unshown(self, end: int) -> Iterator[Finished]:
        """The chunks before ``end`` that are not in the video."""
        return (self.chunk(index) for index in range(self.first + len(self.fragments), end))

    # Going on

    def load(self, dit: MagiDiT, warn: Callable[[str], None] = log.warning, *, loras: Sequence[Used] = ()) -> Making:
        """The video where the newest whole checkpoint left it; ``warn`` is told of a damaged one, and the one before it used.

        loras: what ``dit`` has besides its weights (``Magi.used_loras``). Raises MagiError when there is none, or it was made with another
        model or other LoRAs.
        """
        self.check_model(dit)
        for path in reversed(self.checkpoints):
            try:
                making = Making.load(path, dit)
                for _ in self.unshown(making.next_chunk):
                    pass  # all must be readable, since only the chunks from next_chunk on are made again
            except OtherModel:
                raise
            except MagiError as error:
                warn(f"{error}; the checkpoint before it is used")
                continue
            making.check_loras(loras)
            return making
        raise self._nothing_whole()

    def rewound(
        self,
        dit: MagiDiT,
        chunk: int,
        *,
        seed: int | None = None,
        keep_plan: bool = True,
        loras: Sequence[Used] = (),
    ) -> Making:
        """The video before ``chunk``, any from the first one that this run made itself on: to be made from there once more.

        seed: of all noise from there on. keep_plan=False forgets what was asked for from there on, so that other words can be added.
        ``fork`` then makes a run of it. loras: as of ``load``. Raises MagiError for a chunk that was never planned or cannot be gone back to.
        """
        self.check_model(dit)
        making = Making.load(self.checkpoints[0], dit)
        making.check_loras(loras)
        unshown = making.unshown if chunk == making.next_chunk else None
        if unshown is None:
            whole_number("chunk", chunk, making.next_chunk, self.first + self.done)
            unshown = self.chunk(chunk - 1).spans[-1].rest
        making.rewind(chunk, lambda index: self.chunk(index).latents, unshown=unshown, seed=seed, keep_plan=keep_plan)
        return making

    def fork(self, folder: Path, asked: Asked, making: Making) -> Run:
        """Another take, in a folder of its own: this run's chunks before those of ``making`` (see ``rewound``), and their video.

        This run stays as it is. Raises MagiError as ``create``.
        """

        def take_over(folder: Path) -> None:
            for index in range(self.first, making.next_chunk):
                write_chunk(folder / CHUNKS / f"{index:06d}.safetensors", self.chunk(index))
            kept = self.fragments[: making.next_chunk - self.first]
            if kept:
                shutil.copyfile(self.video, folder / VIDEO)
                os.truncate(folder / VIDEO, kept[-1].offset + kept[-1].size)

        return self._build(Path(folder), asked, making, self.first, take_over)

    def export(self, target: Path) -> None:
        """The video so far as an ordinary MP4 with its index in front; raises MagiError where it cannot be written."""
        with clear_errors(target), atomic_write(Path(target)) as whole:
            copy_mp4(self.video, whole, self.asked.metadata)

    def check_model(self, dit: MagiDiT) -> None:
        """Raise MagiError when ``dit`` is not the model that made this run."""
        if fingerprint(dit) != self.model:
            raise MagiError(
                f"the run {self.folder} was made with another model ({self.asked.model}); load that one to go on with it"
            )

    # How it is done

    @classmethod
    def _build(cls, folder: Path, asked: Asked, making: Making, first: int, fill: Callable[[Path], None]) -> Run:
        """The folder appears whole, or not at all."""
        model = fingerprint(making.session.model)
        run = cls(folder, asked, first, making.end(drain=asked.drain), model)
        document = {
            "version": VERSION,
            "asked": {**asdict(asked), "fps": str(asked.fps)},
            "model": model,
            "first": run.first,
            "end": run.end,
        }
        building = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
        try:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise MagiError(
                    f"{folder} is not an empty folder; choose another one for the run, or finish the run in it"
                )
            for name in (CHUNKS, CHECKPOINTS):
                (building / name).mkdir(parents=True)
            fill(building)
            making.save(building / CHECKPOINTS / "000000.session")
            (building / ABOUT).write_text(
                json.dumps({"sha256": _hash(document), **document}, indent=1), encoding="utf-8"
            )
            if folder.exists():
                folder.rmdir()
            os.replace(building, folder)
            for left in folder.parent.glob(
                f".{glob.escape(folder.name)}-{'[0-9a-f]' * 32}"
            ):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise MagiError(
                f"cannot keep a run in {folder}: {error.strerror}. Free space, or choose a folder that can be written"
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return run

    def _write(self, making: Making) -> None:
        try:
            for index, finished in list(self._waiting.items()):
                write_chunk(self._chunk_path(index), finished)
                del self._waiting[index]
            paths = self.checkpoints
            making.save(self.folder / CHECKPOINTS / f"{int(paths[-1].stem) + 1 if paths else 0:06d}.session")
        except MagiError as error:
            if self.problem is None:
                log.warning(
                    "%s. The video goes on; what is finished stays in memory, and is written as soon as that works",
                    error,
                )
            self.problem = error
            return
        self.problem, self._kept_steps = None, making.progress.steps
        halves = (
            half for name in (CHUNKS, CHECKPOINTS) for half in (self.folder / name).glob(".*")
        )  # a kill left them
        for path in (*self.checkpoints[1:-NEWEST], *halves):
            with suppress(OSError):
                path.unlink()

    def _nothing_whole(self) -> MagiError:
        return MagiError(
            f"the run {self.folder} has no checkpoint that is whole; its finished chunks are in {self.folder / CHUNKS}"
        )

    def _chunk_path(self, index: int) -> Path:
        return self.folder / CHUNKS / f"{index:06d}.safetensors"


def _states(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """Of those that are there: a run may be made, or removed, while somebody looks at it."""
    for path in paths:
        with suppress(OSError):
            yield path.stat()


def _hash(document: Mapping[str, Any]) -> str:
    return sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
