"""The kinds of files that a growing video can be: H.264 MP4, VP9 WebM, a folder of PNG pictures. One class each, alike in use.

Each class writes under ``partial``, a name beside the target, until ``finish`` gives it the target's name.

Notable: the MP4 is fragmented, and every ``append`` encodes its frames as one fragment that needs no other and ends with the
call. So the partial file is complete and playable between any two calls, whatever kills the process, with nothing in an
encoder's or a muxer's buffer. ``finish`` copies the packets, unchanged, into an ordinary MP4 with its index in front.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from magi_core.errors import MagiError, missing_extra
from magi_core.files import atomic_write
from magi_core.images import Frames, write_png

log = logging.getLogger(__name__)

H264 = {"crf": "16", "preset": "medium", "bf": "0"}
"""No B-frames: they would put a fragment's first decoding time before its first frame."""
VP9 = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1", "lag-in-frames": "0", "g": "24"}

_FRAGMENT = "empty_moov+default_base_moof+frag_custom+frag_discont+skip_trailer+use_metadata_tags"
_BT709 = 1
_MPEG_RANGE = 1


class VideoFile(Protocol):
    """A video that grows by whole pieces."""

    partial: Path

    def append(self, frames: Frames, at: int) -> None:
        """Add uint8 frames [T,H,W,3]; ``at`` frames were there before."""

    def finish(self) -> None:
        """Give the target its name and its content."""

    def discard(self) -> None:
        """Remove what was written."""


def import_av(purpose: str) -> Any:
    """PyAV, or a MagiError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise missing_extra("av", "video", purpose) from error
    return av


class Mp4File:
    """H.264, yuv420p, BT.709; playable while it grows."""

    def __init__(self, target: Path, rate: Fraction, metadata: Mapping[str, str]) -> None:
        self._av = import_av("writing MP4 files")
        self._target, self._rate, self._metadata = target, rate, metadata
        self.partial = _partial_file(target)
        self._bytes = 0
        self._fragments = 0

    def append(self, frames: Frames, at: int) -> None:
        _check_even(frames)
        boxes = list(_boxes(self._fragment(frames, at)))
        keep = (b"moof", b"mdat") if self._fragments else (b"ftyp", b"moov", b"moof", b"mdat")
        data = b"".join(box for kind, box in boxes if kind in keep)
        with self.partial.open("r+b") as file:
            file.seek(self._bytes)
            file.write(data)
            file.truncate()
        self._bytes += len(data)
        self._fragments += 1

    def finish(self) -> None:
        os.truncate(self.partial, self._bytes)  # an interrupted append leaves a piece of a fragment
        try:
            with atomic_write(self._target) as whole:
                self._copy_packets(whole)
        except (OSError, MagiError, self._av.error.FFmpegError) as error:
            log.warning("%s stays a fragmented MP4: it could not be copied (%s)", self._target, error)
            _rename(self.partial, self._target)
        self.discard()

    def discard(self) -> None:
        self.partial.unlink(missing_ok=True)

    def _fragment(self, frames: Frames, at: int) -> bytes:
        """A whole fragmented MP4 in memory that holds these frames only, with their times in the long video."""
        file = io.BytesIO()
        options = {"movflags": _FRAGMENT, "fragment_index": str(self._fragments + 1)}
        with self._av.open(
            file, "w", format="mp4", options=options, container_options={"avoid_negative_ts": "disabled"}
        ) as container:
            container.metadata.update(self._metadata)
            stream = _add_stream(container, "libx264", self._rate, H264, frames)
            for packet in _encode(self._av, stream, frames, at, self._rate):
                container.mux(packet)
            container.mux(stream.encode(None))
        return file.getvalue()

    def _copy_packets(self, whole: Path) -> None:
        av = self._av
        with (
            av.open(str(self.partial)) as source,
            av.open(str(whole), "w", format="mp4", options={"movflags": "faststart+use_metadata_tags"}) as copy,
        ):
            copy.metadata.update(self._metadata)
            stream = copy.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    copy.mux(packet)


class WebmFile:
    """VP9, yuv420p, BT.709. The encoder stays open; after a hard crash the last seconds may be missing."""

    def __init__(self, target: Path, rate: Fraction, metadata: Mapping[str, str]) -> None:
        self._av = import_av("writing WebM files")
        self._target, self._rate, self._metadata = target, rate, metadata
        self.partial = _partial_file(target)
        self._container: Any = None
        self._stream: Any = None

    def append(self, frames: Frames, at: int) -> None:
        _check_even(frames)
        if self._container is None:
            self._container = self._av.open(
                str(self.partial), "w", format="webm", container_options={"flush_packets": "1"}
            )
            self._container.metadata.update(self._metadata)
            self._stream = _add_stream(self._container, "libvpx-vp9", self._rate, VP9, frames)
        for packet in _encode(self._av, self._stream, frames, at, self._rate):
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
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise MagiError(f"{target} exists and is not an empty folder; name a new folder for the pictures")
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


def _add_stream(container: Any, codec: str, rate: Fraction, options: Mapping[str, str], frames: Frames) -> Any:
    try:
        stream = container.add_stream(codec, rate=rate, options=dict(options))
    except ValueError as error:  # PyAV's error for an unknown codec
        raise MagiError(
            f"this PyAV was built without the encoder {codec}; install PyAV from PyPI: pip install av"
        ) from error
    _, stream.height, stream.width, _ = frames.shape
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _MPEG_RANGE
    return stream


def _encode(av: Any, stream: Any, frames: Frames, at: int, rate: Fraction) -> Iterator[Any]:
    for number, picture in enumerate(frames, at):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p", dst_colorspace=_BT709)
        frame.pts, frame.time_base = number, 1 / rate
        yield from stream.encode(frame)


def _check_even(frames: Frames) -> None:
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise MagiError(
            f"the frames are {width}x{height}; MP4 and WebM need an even width and height: resize them, or write a folder of PNGs"
        )


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The top-level boxes of an MP4: (kind, whole box)."""
    start = 0
    while start < len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], data[start : start + size]
        start += size


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
