"""Videos as files: read frames at a frame rate, write frames as they come, keep the story (prompt, settings) in the file.

Frames are uint8 [T,H,W,3], RGB. Reading and writing go through PyAV, which is imported when it is needed.

Notable: frame rates are converted as ffmpeg's fps filter does (spec section 13): a source frame at time s from the first one
is shown from output frame round(s * fps) on, halves up, until the next one takes over; so frames are repeated or
dropped, never blended.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from magi_core.errors import MagiError
from magi_core.growing_mp4 import import_av
from magi_core.images import Fit, Frames, check_frames, check_size, resize
from magi_core.plan import checked_fps
from magi_core.video_colours import rgb_of
from magi_core.video_files import KINDS, VideoFile, clear_errors

log = logging.getLogger(__name__)

MAX_READ_BYTES = 8 * 2**30
_MAX_GAP_SECONDS = 3600
_CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "creation_time"}


def read_video(
    path: Path,
    *,
    fps: float | Fraction = 24,
    first: int | None = None,
    last: int | None = None,
    size: tuple[int, int] | None = None,
    fit: Fit = "stretch",
) -> Frames:
    """Read a video as uint8 [T,H,W,3] at ``fps`` frames per second.

    ``first`` or ``last`` limits it to so many frames at that end (fewer where the video is shorter); the rest is never held in
    memory. ``size`` is (height, width), reached by the rule ``fit`` (images.resize). A turned phone video is turned upright.
    Raises MagiError when the file is missing, holds no video, is damaged, or needs more than 8 GiB of frames.
    """
    for name, count in (("first", first), ("last", last)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise MagiError(f"{name} is {count!r}; it must be a number of frames, at least 1")
    if first is not None and last is not None:
        raise MagiError("give either first or last, the number of frames wanted from one end of the video")
    if size is not None:
        check_size(*size)
    kept: list[Frames] = []
    pictures = _pictures(path, fps)
    for picture in islice(pictures, first) if last is None else deque(pictures, maxlen=last):
        rgb = _upright(picture)[None]
        size = size or (rgb.shape[1], rgb.shape[2])
        kept.append(resize(rgb, *size, fit))
        if len(kept) * kept[0].nbytes > MAX_READ_BYTES:
            raise MagiError(f"{path} is too long to be read whole; ask for its first or last frames, or a smaller size")
    if not kept:
        raise MagiError(f"{path} holds no video frames")
    return np.concatenate(kept)


def play_video(path: Path, *, size: tuple[int, int], fps: float | Fraction = 24, fit: Fit = "crop") -> Iterator[Frames]:
    """The frames of a video of any length, uint8 [1,H,W,3] each, one at a time; otherwise as ``read_video``."""
    check_size(*size)
    for picture in _pictures(path, fps):
        yield resize(_upright(picture)[None], *size, fit)


def _pictures(path: Path, fps: float | Fraction) -> Iterator[Any]:
    """The decoder's pictures at a frame rate."""
    with _open(path) as container:
        if not container.streams.video:
            raise MagiError(f"{path} holds no video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield from at_rate(_decode(container, stream), checked_fps(fps), str(path))


def at_rate(timed: Iterable[tuple[Fraction, Fraction, Any]], rate: Fraction, name: str) -> Iterator[Any]:
    """Repeat and drop pictures for a constant frame rate, as the rule in this module's head says.

    ``timed`` gives (time, duration, picture), times in seconds. At least one picture comes out if one goes in.
    Raises MagiError when a time stamp lies more than an hour after the one before.
    """
    current: Any = None
    start, shown, end = Fraction(0), 0, Fraction(0)
    for time, duration, picture in timed:
        if current is None:
            start = end = time
        due = _half_up((time - start) * rate)
        if time - end > _MAX_GAP_SECONDS:
            raise MagiError(f"{name} is damaged: its time stamps jump by more than an hour")
        for _ in range(shown, due):
            yield current
        shown, current, end = max(shown, due), picture, max(end, time + duration)
    if current is not None:
        for _ in range(shown, max(_half_up((end - start) * rate), shown + (shown == 0))):
            yield current


def read_metadata(path: Path) -> dict[str, str]:
    """The text entries of a video, or of a folder of pictures (from its first one); names in lower case.

    What the container says of itself (brands, encoder, duration) is left out. Raises MagiError when there is nothing to read.
    """
    path = Path(path)
    if path.is_dir():
        pictures = sorted(path.glob("*.png"))
        if not pictures:
            raise MagiError(f"the folder {path} holds no PNG pictures")
        try:
            with Image.open(pictures[0], formats=["PNG"]) as picture:
                return {key.lower(): str(value) for key, value in picture.info.items() if isinstance(value, str)}
        except (OSError, ValueError, SyntaxError) as error:
            raise MagiError(f"{pictures[0]} cannot be read: {error}") from error
    with _open(path) as container:
        entries = {key.lower(): value for key, value in container.metadata.items()}
    return {key: value for key, value in entries.items() if key not in _CONTAINER_TAGS}


class VideoWriter:
    """A video that grows on disk while it is made; use it as a context manager.

    The name's suffix says what it is: ``.mp4`` (H.264), ``.webm`` (VP9), or no suffix for a folder of PNG pictures.
    What is finished lies under ``partial``, beside the target (an MP4 there can be played at any time, and after a crash).
    At the end it gets the target's name; also when the block is left by an error or Ctrl-C, if there are frames.
    ``metadata`` are text entries, for example prompt and settings; ``read_metadata`` gives them back.
    Raises MagiError for another suffix, a folder that cannot be written, a full disk, frames of changing size, or no frames.
    """

    def __init__(self, path: Path, *, fps: float | Fraction = 24, metadata: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        self.frames = 0
        check_target(self.path)
        self._shape: tuple[int, ...] | None = None
        self._closed = False
        with clear_errors(self.path):
            kind = KINDS[self.path.suffix.lower()]
            self._file: VideoFile = kind(self.path, checked_fps(fps), _checked_metadata(metadata or {}))

    @property
    def partial(self) -> Path:
        """Where the growing video lies until it is closed."""
        return self._file.partial

    def append(self, frames: Frames) -> None:
        """Add frames uint8 [T,H,W,3], all of one size; they are on disk when the call returns."""
        check_frames(frames)
        if self._closed:
            raise MagiError(f"{self.path} is closed; no frames can be added")
        shape = frames.shape[1:]
        if self._shape is not None and shape != self._shape:
            was, now = (f"{w}x{h}" for h, w, _ in (self._shape, shape))
            raise MagiError(f"the frames of {self.path} are {was}; frames of {now} cannot be added")
        with clear_errors(self.path):
            self._file.append(np.ascontiguousarray(frames), self.frames)
        self._shape = shape
        self.frames += len(frames)

    def close(self) -> None:
        """Give the video its name; raises MagiError when it has no frames or cannot be written. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        if not self.frames:
            self._file.discard()
            raise MagiError(f"no frames were written to {self.path}, so there is no video")
        with clear_errors(self.path):
            self._file.finish()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except MagiError as problem:  # the first error is the one to show
            log.warning("%s", problem)


def check_target(path: Path) -> None:
    """Raise MagiError unless the name says what kind of video is to be written there, and no folder with other things in it is there."""
    if path.suffix.lower() not in KINDS or not path.name or (path.suffix and path.is_dir()):
        raise MagiError(
            f"cannot write a video to {str(path)!r}; end the name in .mp4 or .webm, or name a folder for PNGs"
        )
    if not path.suffix and path.exists():
        with clear_errors(path):
            if not path.is_dir() or any(path.iterdir()):
                raise MagiError(f"{path} exists and is not an empty folder; name a new folder for the pictures")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """An opened video whose problems are MagiErrors. Only this file is read: a playlist cannot lead elsewhere."""
    av = import_av("reading video files")
    path = Path(path)
    try:
        if not path.is_file():
            raise MagiError(f"the video {str(path)!r} does not exist or is no file")
        with av.open(
            str(path.absolute()), metadata_errors="replace", options={"protocol_whitelist": "file"}
        ) as container:
            yield container
    except MagiError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, UnicodeError) as error:
        raise MagiError(f"{str(path)!r} cannot be read as a video, or it is damaged: {error}") from error


def _decode(container: Any, stream: Any) -> Iterator[tuple[Fraction, Fraction, Any]]:
    usual = 1 / (stream.average_rate or Fraction(24))
    time = -usual
    for frame in container.decode(stream):
        exact = frame.pts is not None and frame.time_base
        time = frame.pts * frame.time_base if exact else time + usual
        length = getattr(frame, "duration", 0)  # PyAV 14 has none
        duration = length * frame.time_base if exact and length else usual
        yield time, duration, frame


def _upright(frame: Any) -> Frames:
    """RGB [H,W,3], turned as the file asks for (a multiple of 90 degrees, counter-clockwise)."""
    return np.ascontiguousarray(np.rot90(rgb_of(frame), round(getattr(frame, "rotation", 0) / 90) % 4))


def _half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        try:
            usable = bool(key) and "\0" not in key + value and (key + value).encode("utf-8") is not None
        except (TypeError, UnicodeEncodeError):
            usable = False
        if not usable:
            raise MagiError(f"the metadata entry {key!r} must be text without NUL and half characters")
    return dict(metadata)
