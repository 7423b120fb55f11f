"""The kinds of files that a growing video can be: H.264 MP4, VP9 WebM, a folder of PNG pictures. One class each, alike in use.

Each class writes under ``partial``, a name beside the target, until ``finish`` gives it the target's name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from magi_core.errors import MagiError
from magi_core.files import atomic_write
from magi_core.growing_mp4 import GrowingMp4, add_stream, check_even, copy_mp4, encode, import_av
from magi_core.images import Frames, write_png

log = logging.getLogger(__name__)

VP9 = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1", "lag-in-frames": "0", "g": "24"}


class VideoFile(Protocol):
    """A video that grows by whole pieces."""

    partial: Path

    def append(self, frames: Frames, at: int) -> None:
        """Add uint8 frames [T,H,W,3]; ``at`` frames were there before."""

    def finish(self) -> None:
        """Give the target its name and its content."""

    def discard(self) -> None:
        """Remove what was written."""


class Mp4File:
    """H.264, yuv420p, BT.709; playable while it grows. At the end its packets are copied, unchanged, into an ordinary MP4."""

    def __init__(self, target: Path, rate: Fraction, metadata: Mapping[str, str]) -> None:
        self._av = import_av("writing MP4 files")
        self._target, self._metadata = target, metadata
        self.partial = _partial_file(target)
        self._growing = GrowingMp4(self.partial, rate, metadata)

    def append(self, frames: Frames, at: int) -> None:
        self._growing.append(frames)

    def finish(self) -> None:
        self._growing.cut()  # an interrupted append leaves a piece of a fragment
        try:
            with atomic_write(self._target) as whole:
                copy_mp4(self.partial, whole, self._metadata)
        except (OSError, MagiError, self._av.error.FFmpegError) as error:
            log.warning("%s stays a fragmented MP4: it could not be copied (%s)", self._target, error)
            _rename(self.partial, self._target)
        self.discard()

    def discard(self) -> None:
        self.partial.unlink(missing_ok=True)


class WebmFile:
    """VP9, yuv420p, BT.709. The encoder stays open; after a hard crash the last seconds may be missing."""

    def __init__(self, target: Path, rate: Fraction, metadata: Mapping[str, str]) -> None:
        self._av = import_av("writing WebM files")
        self._target, self._rate, self._metadata = target, rate, metadata
        self.partial = _partial_file(target)
        self._container: Any = None
        self._stream: Any = None

    def append(self, frames: Frames, at: int) -> None:
        check_even(frames)
        if self._container is None:
            self._container = self._av.open(
                str(self.partial), "w", format="webm", container_options={"flush_packets": "1"}
            )
            self._container.metadata.update(self._metadata)
            self._stream = add_stream(self._container, "libvpx-vp9", self._rate, VP9, frames)
        for packet in encode(self._av, self._stream, frames, at, self._rate):
            self._container.mux(packet)

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        _rename(self.partial, self._target)

    def discard(self) -> None:
        if self._container is not None:
            with contextlib.suppress(OSError, ValueError):
                self._container.close()
        self.partial.unlink(missing_ok=True)


class PngFolder:
    """A folder of lossless pictures 000000.png, 000001.png, ...; each carries the metadata."""

    def __init__(self, target: Path, rate: Fraction, metadata: Mapping[str, str]) -> None:
        self._target = target
        self._metadata = {"fps": str(rate), **metadata}
        target.parent.mkdir(parents=True, exist_ok=True)
        self.partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
        self.partial.chmod(0o755)

    def append(self, frames: Frames, at: int) -> None:
        for number, frame in enumerate(frames, at):
            write_png(self.partial / f"{number:06d}.png", Image.fromarray(frame), self._metadata)

    def finish(self) -> None:
        if self._target.is_dir():
            self._target.rmdir()
        _rename(self.partial, self._target)

    def discard(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)


KINDS: Mapping[str, type[Mp4File] | type[WebmFile] | type[PngFolder]] = {
    ".mp4": Mp4File,
    ".webm": WebmFile,
    "": PngFolder,
}
"""Which kind a name means, by its suffix."""


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """What goes wrong while a video is written, as a MagiError that names it."""
    try:
        yield
    except MagiError:
        raise
    except (OSError, ValueError, RuntimeError, _ffmpeg_error()) as error:
        reason = getattr(error, "strerror", None) or error
        raise MagiError(f"cannot write {path}: {reason}. Free space, or choose a folder that can be written") from error


def _ffmpeg_error() -> type[Exception]:
    """PyAV's own error class where PyAV is in use; some of its errors have no other base than Exception."""
    return getattr(sys.modules.get("av.error"), "FFmpegError", OSError)


def _partial_file(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{target.stem}.partial-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    Path(name).chmod(0o644)
    return Path(name)


def _rename(partial: Path, target: Path) -> None:
    try:
        os.replace(partial, target)
    except OSError as error:
        raise MagiError(
            f"cannot give the video its name {target} ({error.strerror}); it is kept as {partial}"
        ) from error
