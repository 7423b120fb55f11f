"""An MP4 that grows on disk by whole fragments, each of which can be played as soon as it is written.

Notable:
- Every ``append`` encodes its frames with a fresh encoder as one fragment (a moof and an mdat box) that needs no other. Its bytes depend
  on its frames, its number and its place in time alone. So the file is complete between any two calls, whatever kills the process; cut
  to its last whole fragment it goes on to the same bytes as if nothing had happened.
- The metadata stand in front, in the moov box that the first fragment brings along.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from magi_core.errors import MagiError, missing_extra
from magi_core.images import Frames, check_frames
from magi_core.video_colours import BT709, MPEG_RANGE, rgb_of, to_yuv420

CRF = 16
"""x264's quality: 0 is lossless, 51 the worst; 16 is hard to tell from the original."""
ENCODER_THREADS = 4
"""Fixed, because x264's output depends on it."""

_H264 = {"preset": "medium", "bf": "0", "mbtree": "0"}
"""No B-frames: they would put a fragment's first decoding time before its first frame. No macroblock tree: in small pictures what x264
makes with it depends on what lay in memory before, so that the same frames give other bytes now and then."""
_FRAGMENT = "empty_moov+default_base_moof+frag_custom+frag_discont+skip_trailer+use_metadata_tags"


@dataclass(frozen=True)
class Fragment:
    """Where a piece of the video lies. What a player needs before any fragment is the file up to the first one's ``offset``."""

    offset: int
    """In the file, in bytes."""
    size: int
    """Bytes."""
    at: int
    """The first frame's number in the video."""
    frames: int


class GrowingMp4:
    """H.264, yuv420p, BT.709; what is there already is kept, but for a fragment that is not whole."""

    def __init__(self, path: Path, rate: Fraction, metadata: Mapping[str, str], *, crf: int = CRF) -> None:
        """metadata: text entries, as ComfyUI's Save Video writes them. The file is made by the first ``append``."""
        self._av = import_av("writing MP4 files")
        self.path = Path(path)
        self._rate, self._metadata, self._crf = rate, dict(metadata), crf
        self.fragments = fragments_of(self.path)

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return self.fragments[-1].at + self.fragments[-1].frames if self.fragments else 0

    @property
    def size(self) -> int:
        """Bytes of what is whole."""
        return self.fragments[-1].offset + self.fragments[-1].size if self.fragments else 0

    def append(self, frames: Frames) -> Fragment:
        """Add uint8 frames [T, H, W, 3] as a fragment; it is on disk when the call returns. What cannot be written whole is cut off."""
        check_frames(frames)
        check_even(frames)
        data, start = self._encode(frames), 0
        for kind, box in boxes(data):
            if kind == b"moof":
                break
            start += len(box)
        if self.fragments:
            data, start = data[start:], 0
        end = self.size
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            try:
                file.seek(end)
                file.write(data)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
        self.fragments = (*self.fragments, Fragment(end + start, len(data) - start, self.frames, len(frames)))
        return self.fragments[-1]

    def cut(self) -> None:
        """Remove what is not whole."""
        if self.path.exists():
            os.truncate(self.path, self.size)

    def _encode(self, frames: Frames) -> bytes:
        """A whole fragmented MP4 in memory that holds these frames only, with their times in the long video."""
        file = io.BytesIO()
        options = {"movflags": _FRAGMENT, "fragment_index": str(len(self.fragments) + 1)}
        with self._av.open(
            file, "w", format="mp4", options=options, container_options={"avoid_negative_ts": "disabled"}
        ) as container:
            container.metadata.update(self._metadata)
            settings = {**_H264, "crf": str(self._crf), "threads": str(ENCODER_THREADS)}
            stream = add_stream(container, "libx264", self._rate, settings, frames)
            for packet in encode(self._av, stream, frames, self.frames, self._rate):
                container.mux(packet)
            container.mux(stream.encode(None))
        return file.getvalue()


def fragments_of(path: Path) -> tuple[Fragment, ...]:
    """The whole fragments of a growing file, in order; none where there is no such file."""
    try:
        with Path(path).open("rb") as file:
            return tuple(_walk(file))
    except FileNotFoundError:
        return ()


def read_fragment(path: Path, number: int) -> Frames:
    """The frames of a growing file's fragment, uint8 [T, H, W, 3]; raises MagiError where it has none of that number."""
    av = import_av("reading MP4 files")
    fragments = fragments_of(path)
    if not 0 <= number < len(fragments):
        raise MagiError(f"{path} has {len(fragments)} fragments; there is no number {number}")
    wanted = fragments[number]
    with Path(path).open("rb") as file:
        start = file.read(fragments[0].offset)
        file.seek(wanted.offset)
        alone = io.BytesIO(start + file.read(wanted.size))
    with av.open(alone) as container:
        return np.stack([rgb_of(frame) for frame in container.decode(video=0)])


def copy_mp4(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """The packets of an MP4, unchanged, as an ordinary one with its index in front; without ``source``'s own metadata."""
    av = import_av("writing MP4 files")
    with (
        av.open(str(source)) as growing,
        av.open(str(target), "w", format="mp4", options={"movflags": "faststart+use_metadata_tags"}) as copy,
    ):
        copy.metadata.update(metadata)
        source_stream = growing.streams.video[0]
        stream = copy.add_stream_from_template(source_stream, opaque=True)  # without it PyAV 14 opens an encoder
        with suppress(AttributeError, RuntimeError):  # PyAV 14 takes a fine one of its own
            stream.time_base = source_stream.time_base
        for packet in growing.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)


def import_av(purpose: str) -> Any:
    """PyAV, or a MagiError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise missing_extra("av", "video", purpose) from error
    return av


def add_stream(container: Any, codec: str, rate: Fraction, options: Mapping[str, str], frames: Frames) -> Any:
    """A video stream for frames of that size; raises MagiError where PyAV has no such encoder."""
    try:
        stream = container.add_stream(codec, rate=rate, options=dict(options))
    except ValueError as error:  # PyAV's error for an unknown codec
        raise MagiError(
            f"this PyAV was built without the encoder {codec}; install PyAV from PyPI: pip install av"
        ) from error
    _, stream.height, stream.width, _ = frames.shape
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = MPEG_RANGE
    return stream


def encode(av: Any, stream: Any, frames: Frames, at: int, rate: Fraction) -> Iterator[Any]:
    """Packets of the frames, which are number ``at`` and following of the video."""
    convert = to_yuv420(av)
    for number, picture in enumerate(frames, at):
        frame = convert(picture)
        frame.pts, frame.time_base = number, 1 / rate
        yield from stream.encode(frame)


def check_even(frames: Frames) -> None:
    """Raise MagiError where colours cannot be halved."""
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise MagiError(
            f"the frames are {width}x{height}; MP4 and WebM need an even width and height: resize them, or write a folder of PNGs"
        )


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The boxes of an MP4 one after the other: (kind, whole box)."""
    start = 0
    while start < len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        if not 8 <= size <= len(data) - start:
            raise ValueError("not a box")
        yield data[start + 4 : start + 8], data[start : start + size]
        start += size


def _walk(file: BinaryIO) -> Iterator[Fragment]:
    """The fragments of an open file, as far as it is as we write it."""
    length = file.seek(0, os.SEEK_END)
    place, moof, at = 0, b"", 0
    for wanted in _kinds():
        file.seek(place)
        head = file.read(8)
        size = int.from_bytes(head[:4], "big")
        if head[4:] != wanted or not 8 <= size <= length - place:
            return
        if wanted == b"moof":
            moof = head + file.read(size - 8)
        if wanted == b"mdat":
            frames = _frames(moof)
            yield Fragment(place - len(moof), len(moof) + size, at, frames)
            at += frames
        place += size


def _kinds() -> Iterator[bytes]:
    yield from (b"ftyp", b"moov")
    while True:
        yield from (b"moof", b"mdat")


def _frames(moof: bytes) -> int:
    """How many frames a fragment has, as its trun box says behind version and flags."""
    trun = _child(_child(moof, b"traf"), b"trun")
    return int.from_bytes(trun[12:16], "big")


def _child(box: bytes, kind: bytes) -> bytes:
    return next((inner for name, inner in boxes(box[8:]) if name == kind), b"")
