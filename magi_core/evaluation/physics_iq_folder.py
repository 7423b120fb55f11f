"""Physics-IQ's folder of videos: what is to be predicted, from what, and what happened; predictions made and scored.

The layout is the benchmark's own (``full-videos`` are not needed): ``split-videos/conditioning`` (3 seconds given),
``split-videos/testing`` (the 5 seconds that followed), ``switch-frames`` (the picture between them), ``video-masks/real`` and
``descriptions.csv``, here or beside the folder.

Notable: a prediction that is there is not made again, so a run that was broken off goes on; one that fails is named and left out.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from magi_core.errors import MagiError
from magi_core.evaluation.cv import frames_of, frames_per_second
from magi_core.evaluation.physics_iq import SHRINK, Seen, View, agreement, masks_of, motion_masks, seen, stored
from magi_core.images import Frames, read_image
from magi_core.video import VideoWriter, read_metadata, read_video

log = logging.getLogger(__name__)

GIVEN_SECONDS = 3
PREDICTED_SECONDS = 5
_SHOWN = 108, 192
_FOLDERS = {
    "conditioning-videos": ("split-videos/conditioning", "split-videos/conditioning-videos"),
    "testing-videos": ("split-videos/testing", "split-videos/testing-videos"),
    "video-masks": ("video-masks/real",),
}
"""Where each kind of file lies, in the released data and as its description says."""


@dataclass(frozen=True)
class Task:
    """One video to predict."""

    number: str
    """"0001" .. "0198", of take 1."""
    second: str
    """Number of take 2, of the same event from the same side."""
    view: str
    scenario: str
    prompt: str
    category: str

    @property
    def file(self) -> str:
        """The prediction's file name."""
        return f"{self.number}_{self.view}_{self.scenario}.mp4"


@dataclass(frozen=True)
class Given:
    """What a model is told of a task."""

    prompt: str
    seed: int
    video: Frames | None = None
    """The 3 seconds before, uint8 [T, H, W, 3] at the model's frame rate."""
    image: Frames | None = None
    """Or the one picture [H, W, 3] at which the prediction begins."""


Predict = Callable[[Given], Iterable[Frames]]
"""Makes the 5 seconds that follow, piece by piece, uint8 [T, H, W, 3]."""


@dataclass(frozen=True)
class Benchmark:
    """The folder, and at how many frames per second it is used (the released data has 8, 16, 24 and 30)."""

    folder: Path
    fps: int
    descriptions: Path | None = None

    def tasks(self) -> list[Task]:
        """All videos to predict, in the benchmark's order. Raises MagiError where the list is missing or cannot be read."""
        try:
            with self._descriptions().open(encoding="utf-8-sig", newline="") as file:
                rows = {row["scenario"]: row for row in csv.DictReader(file)}
            parts = {name: tuple(name.removesuffix(".mp4").split("_")) for name in rows}
            numbers = {(view, take, scenario): number for number, view, take, scenario in parts.values()}
            return [
                Task(
                    number,
                    numbers[view, "take-2", scenario],
                    view,
                    scenario,
                    rows[name]["description"],
                    rows[name].get("category") or "",
                )
                for name, (number, view, take, scenario) in sorted(parts.items())
                if take == "take-1"
            ]
        except (KeyError, ValueError, TypeError) as error:
            raise MagiError(
                f"{self._descriptions()} is not the benchmark's list of videos ({error}); it needs the columns scenario and description"
            ) from error

    def given(self, task: Task, seed: int, *, image: bool, size: tuple[int, int]) -> Given:
        """What the model is told: the prompt and 3 seconds of video, stretched to ``size`` (height, width), or the one picture."""
        if image:
            name = f"{task.number}_switch-frames_anyFPS_{task.view}_{task.scenario}.jpg"
            return Given(task.prompt, seed, image=read_image(self.folder / "switch-frames" / name))
        path = self._file("conditioning-videos", task.number, task, "take-1")
        return Given(task.prompt, seed, video=read_video(path, fps=self.fps, last=GIVEN_SECONDS * self.fps, size=size))

    def score(self, task: Task, prediction: Path) -> View:
        """Compare a prediction (its first 5 seconds) with the two takes; raises MagiError where a file is missing or too short."""
        real = self._file("testing-videos", task.number, task, "take-1")
        height, width, _ = next(frames_of(real, 1)).shape
        fps = round(frames_per_second(prediction))
        if fps != self.fps:
            raise MagiError(f"{prediction} has {fps} frames per second; this scoring needs {self.fps}")
        other = self._file("testing-videos", task.second, task, "take-2")
        videos = (
            (real, self._masks(task, task.number, "take-1")),
            (other, self._masks(task, task.second, "take-2")),
            (prediction, None),
        )
        one, two, predicted = (self._seen(*video, (height // SHRINK, width // SHRINK)) for video in videos)
        return View(task.file.removesuffix(".mp4"), task.category, agreement(one, predicted), agreement(one, two))

    def shown(self, task: Task, prediction: Path) -> list[tuple[str, Frames]]:
        """What happened and what was predicted, two small pictures a second, as lines of a contact sheet."""
        real = self._file("testing-videos", task.number, task, "take-1")
        return [
            (label, read_video(path, fps=2, first=2 * PREDICTED_SECONDS, size=_SHOWN, fit="pad"))
            for label, path in ((f"{task.number} happened: {task.prompt}", real), ("predicted", prediction))
        ]

    def _seen(self, path: Path, masks: Path | None, size: tuple[int, int]) -> Seen:
        frames = PREDICTED_SECONDS * self.fps
        made = stored(motion_masks(frames_of(path, frames)), self.fps) if masks is None else masks_of(masks, frames)
        found = seen(frames_of(path, frames), made, size)
        if len(found.frames) < frames or len(found.moving) < frames:
            raise MagiError(
                f"{path} or its masks have {len(found.frames)} frames; {frames} are needed ({PREDICTED_SECONDS} seconds)"
            )
        return found

    def _masks(self, task: Task, number: str, take: str) -> Path | None:
        """The benchmark's own where it has them (Verified corrected them by hand); else they are made of the frames."""
        try:
            return self._file("video-masks", number, task, take)
        except MagiError:
            return None

    def _file(self, kind: str, number: str, task: Task, take: str) -> Path:
        name = f"{number}_{kind}_{self.fps}FPS_{task.view}_{take}_{task.scenario}.mp4"
        places = [self.folder / place / f"{self.fps}FPS" / name for place in _FOLDERS[kind]]
        for path in places:
            if path.is_file():
                return path
        raise MagiError(
            f"{places[0]} is missing; download the benchmark at {self.fps} frames per second, or make that rate with its own fps_changer"
        )

    def _descriptions(self) -> Path:
        places = (
            [self.descriptions]
            if self.descriptions
            else [folder / "descriptions.csv" for folder in (self.folder, self.folder.absolute().parent)]
        )
        for path in places:
            if path.is_file():
                return path
        raise MagiError(
            f"{places[0]} is missing; copy descriptions.csv of the benchmark there or name it (--descriptions)"
        )


def predict_all(
    benchmark: Benchmark,
    tasks: Iterable[Task],
    folder: Path,
    predict: Predict,
    *,
    seed: int,
    image: bool,
    size: tuple[int, int],
    made_with: str,
) -> Iterator[tuple[Task, str | None]]:
    """Make what is not there yet, one file per task in ``folder``; each task is given out with what went wrong, or None.

    seed: of the first task; each has its own, so that one made again is the same. size: (height, width) of the model. made_with: the model and its settings, written
    into each file. Raises MagiError where a file that is there was made with others, lest two models be mixed in one score.
    """
    for task in tasks:
        path = folder / task.file
        problem = None
        if path.exists() and _settings_of(path) not in (made_with, None):
            raise MagiError(f"{path} was made with another model or other settings; choose another output folder")
        if not path.exists() or _settings_of(path) is None:
            try:
                given = benchmark.given(task, seed + int(task.number), image=image, size=size)
                _write(path, predict(given), benchmark.fps, {"prompt": task.prompt, "settings": made_with})
            except (MagiError, OSError, RuntimeError) as error:
                problem = str(error)
                log.warning("%s: %s", task.file, problem)
        yield task, problem


def _settings_of(path: Path) -> str | None:
    """What a prediction was made with; None where the file is damaged, and so is made again."""
    try:
        return read_metadata(path).get("settings", "")
    except MagiError:
        return None


def _write(path: Path, pieces: Iterable[Frames], fps: int, metadata: Mapping[str, str]) -> None:
    """Exactly 5 seconds, under the final name only when they are complete."""
    frames = np.concatenate(list(pieces))[: PREDICTED_SECONDS * fps]
    if len(frames) < PREDICTED_SECONDS * fps:
        raise MagiError(f"the model made {len(frames)} frames; {PREDICTED_SECONDS * fps} are needed")
    with VideoWriter(path, fps=fps, metadata=metadata) as writer:
        writer.append(frames)


def score_all(
    benchmark: Benchmark, tasks: Iterable[Task], folder: Path
) -> Iterator[tuple[Task, View | None, str | None]]:
    """Each task with its view, or with what went wrong."""
    for task in tasks:
        try:
            yield task, benchmark.score(task, prediction_of(task, folder)), None
        except MagiError as error:
            yield task, None, str(error)


def prediction_of(task: Task, folder: Path) -> Path:
    """The task's video in a folder: its number counts, whatever else it is called."""
    return next(iter(sorted(folder.glob(f"{task.number}_*.mp4"))), folder / task.file)
