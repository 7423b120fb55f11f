"""Video files: what is written is read back, at any moment and after any end; frame rates as ffmpeg's fps filter makes them."""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_core.errors import MagiError
from magi_core.growing_mp4 import fragments_of, read_fragment
from magi_core.images import Frames, read_image, resize
from magi_core.video import VideoWriter, at_rate, read_metadata, read_video
from magi_core.video_colours import rgb_of

STORY = {
    "prompt": '{"3": "ein Kreis läuft", "x": [1]}',
    "comment": "2s: a red circle\n1s: it stops = ☺",
    "workflow": "{}",
}
NAMES = ["clip.mp4", "clip.webm", "clip"]


def moving(count: int, start: int = 0, height: int = 48, width: int = 64) -> Frames:
    """Frame n is told from its neighbours by its brightness and by where its square stands."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for number, frame in enumerate(frames, start):
        frame[...] = (40 + number * 2 % 160, 60, 200 - number * 2 % 160)
        frame[8:24, number % (width - 16) : number % (width - 16) + 16] = (250, 250, 20)
    return frames


def write(path: Path, frames: Frames, **options: object) -> Path:
    with VideoWriter(path, **options) as writer:  # type: ignore[arg-type]
        writer.append(frames)
    return path


def read_back(path: Path) -> Frames:
    return pictures(path) if path.is_dir() else read_video(path)


def pictures(folder: Path) -> Frames:
    return np.stack([read_image(name) for name in sorted(folder.glob("*.png"))])


def close_to(read: Frames, written: Frames) -> bool:
    return read.shape == written.shape and np.abs(read.astype(int) - written).mean() < 4


@pytest.mark.parametrize("name", NAMES)
def test_chunks_are_on_disk_as_they_come_and_the_story_is_kept(tmp_path: Path, name: str) -> None:
    target, frames = tmp_path / name, moving(60)
    with VideoWriter(target, metadata=STORY) as writer:
        for start, end in ((0, 24), (24, 48), (48, 60)):
            writer.append(frames[start:end])
            assert writer.frames == end
            if name != "clip.webm":
                assert close_to(read_back(writer.partial), frames[:end])
        if name == "clip.mp4":
            assert read_metadata(writer.partial) == STORY
        assert not target.exists()
    assert close_to(read_back(target), frames)
    assert {key: value for key, value in read_metadata(target).items() if key != "fps"} == STORY
    assert [path.name for path in tmp_path.iterdir()] == [name]
    writer.close()
    with pytest.raises(MagiError, match="closed"):
        writer.append(frames)


def test_mp4_ends_as_an_ordinary_file_with_bt709(tmp_path: Path) -> None:
    target = write(tmp_path / "clip.mp4", moving(30), fps=Fraction(24000, 1001))
    data = target.read_bytes()
    assert b"moof" not in data and data.index(b"moov") < data.index(b"mdat")
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.codec_context.name, stream.codec_context.pix_fmt) == (30, "h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(24000 / 1001, rel=1e-5)
        assert stream.codec_context.colorspace == 1
        assert float(stream.duration * stream.time_base) == pytest.approx(30 * 1001 / 24000, rel=1e-5)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5])
def test_colours_are_read_by_the_matrix_and_the_range_that_a_frame_names(matrix: int, full: bool) -> None:
    colour = np.array([40, 60, 200])
    red, blue = {1: (0.2126, 0.0722), 5: (0.299, 0.114)}[matrix]
    luma = red * colour[0] + (1 - red - blue) * colour[1] + blue * colour[2]
    chroma = [(colour[2] - luma) / (2 - 2 * blue), (colour[0] - luma) / (2 - 2 * red)]
    low, scale, wide = (0, 1, 1) if full else (16, 219 / 255, 224 / 255)
    planes = np.concatenate([np.full(64 * 64, low + scale * luma), *(np.full(32 * 32, 128 + wide * c) for c in chroma)])
    frame = av.VideoFrame.from_ndarray(planes.round().astype(np.uint8).reshape(96, 64), format="yuv420p")
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    assert np.abs(rgb_of(frame).astype(int) - colour).max() <= 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_finished_is_kept_when_the_work_is_broken_off(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    with pytest.raises(error), VideoWriter(tmp_path / name, metadata=STORY) as writer:
        writer.append(moving(24))
        raise error
    assert close_to(read_back(tmp_path / name), moving(24))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_crash_in_the_middle_of_a_write_leaves_all_earlier_chunks(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4")
    writer.append(moving(24))
    writer.append(moving(24, 24))
    whole = writer.partial.stat().st_size
    writer.append(moving(24, 48))
    data = writer.partial.read_bytes()
    for size in (whole, whole + 5, whole + 60, (whole + len(data)) // 2):
        crashed = tmp_path / "crashed.mp4"
        crashed.write_bytes(data[:size])
        earlier = [read_fragment(crashed, number) for number in range(len(fragments_of(crashed)))]
        assert close_to(np.concatenate(earlier), moving(48))


def test_an_interrupted_append_is_cut_off(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.append(moving(24))
        with writer.partial.open("ab") as file:
            file.write(b"half a fragment")
        raise KeyboardInterrupt
    assert close_to(read_video(tmp_path / "clip.mp4"), moving(24))


@pytest.mark.parametrize("name", NAMES)
def test_no_frames_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(MagiError, match="no frames"), VideoWriter(tmp_path / name):
        pass
    with pytest.raises(KeyError), VideoWriter(tmp_path / name):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_an_older_file_alone(tmp_path: Path) -> None:
    old = write(tmp_path / "clip.mp4", moving(10))
    before = old.read_bytes()
    with pytest.raises(MagiError), VideoWriter(old) as writer:
        writer.append(moving(5, height=47))
    assert old.read_bytes() == before
    write(old, moving(20))
    assert len(read_video(old)) == 20


def test_a_full_disk_is_a_clear_error_and_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MagiError, match="No space left"), VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.append(moving(24))
        opened = Path.open

        def full(path: Path, mode: str = "r") -> object:
            if path == writer.partial and mode == "r+b":
                raise OSError(28, "No space left on device")
            return opened(path, mode)

        monkeypatch.setattr(Path, "open", full)
        writer.append(moving(24))
    assert len(read_video(tmp_path / "clip.mp4")) == 24
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (moving(2, height=47), "64x47"),
        (moving(2, width=63), "63x48"),
        (moving(0), "uint8"),
        (moving(2).astype(np.float32), "float32"),
        (moving(2)[0], "T,H,W,3"),
        (moving(2)[..., :2], "T,H,W,3"),
        ([[1]], "T,H,W,3"),
    ],
)
def test_frames_that_cannot_be_written(tmp_path: Path, frames: Frames, says: str) -> None:
    with pytest.raises(MagiError, match=says):
        write(tmp_path / "clip.mp4", frames)
    assert not list(tmp_path.iterdir())


def test_frames_keep_one_size_and_pngs_may_be_odd(tmp_path: Path) -> None:
    with pytest.raises(MagiError, match=r"64x48; frames of 32x48"), VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.append(moving(2))
        writer.append(moving(2, width=32))
    assert (pictures(write(tmp_path / "odd", moving(2, height=47))) == moving(2, height=47)).all()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.txt").touch()
    (tmp_path / "empty").mkdir()
    for name, says in (
        ("clip.avi", "in .mp4 or .webm"),
        ("full", "not an empty folder"),
        ("full/old.txt/a.mp4", "cannot write"),
    ):
        with pytest.raises(MagiError, match=says):
            VideoWriter(tmp_path / name)
    for fps in (0, -1, float("nan"), "24", True, 1000):
        with pytest.raises(MagiError, match="fps is"):
            VideoWriter(tmp_path / "a.mp4", fps=fps)  # type: ignore[arg-type]
    for metadata in ({"prompt": "a\0b"}, {"": "x"}, {"prompt": "\ud800"}, {"prompt": 3}):
        with pytest.raises(MagiError, match="metadata"):
            VideoWriter(tmp_path / "a.mp4", metadata=metadata)  # type: ignore[dict-item]
    assert len(pictures(write(tmp_path / "empty", moving(3)))) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


# --- reading -----------------------------------------------------------------------------------------------------------------


def test_first_last_size_and_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", moving(48))
    whole = read_video(path)
    assert (read_video(path, last=10) == whole[-10:]).all()
    assert (read_video(path, first=10) == whole[:10]).all()
    assert (read_video(path, last=100) == whole).all()
    for fit in ("crop", "pad", "stretch"):
        assert (read_video(path, last=3, size=(32, 32), fit=fit) == resize(whole[-3:], 32, 32, fit)).all()
    assert (read_video(path, fps=12) == whole[::2]).all()
    assert (read_video(path, fps=48) == whole.repeat(2, axis=0)).all()
    for bad in (
        {"first": 0},
        {"last": -1},
        {"first": 2.0},
        {"first": 1, "last": 1},
        {"size": (0, 8)},
        {"fit": "fill", "size": (8, 8)},
    ):
        with pytest.raises(MagiError, match=r"first|last|height|fit"):
            read_video(path, **bad)  # type: ignore[arg-type]


def through_ffmpeg(times: list[int], duration: int, clock: Fraction, rate: Fraction) -> list[int]:
    """Which source frames ffmpeg's own fps filter shows."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=2, height=2, format="gray", time_base=clock)
    fps, sink = graph.add("fps", f"fps={rate.numerator}/{rate.denominator}"), graph.add("buffersink")
    source.link_to(fps)
    fps.link_to(sink)
    graph.configure()
    shown = []

    def pull() -> None:
        while True:
            try:
                shown.append(int(graph.pull().to_ndarray()[0, 0]))
            except (av.error.BlockingIOError, av.error.EOFError):
                return

    for number, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(np.full((2, 2), number, np.uint8), format="gray")
        frame.pts, frame.time_base, frame.duration = time, clock, duration
        graph.push(frame)
        pull()
    graph.push(None)
    pull()
    return shown


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=0, max_size=20),
    st.sampled_from([Fraction(24), Fraction(12), Fraction(30), Fraction(60), Fraction(24000, 1001)]),
)
def test_rate_conversion_shows_the_frames_that_ffmpeg_shows(gaps: list[int], rate: Fraction) -> None:
    clock, duration = Fraction(1, 600), 20
    times = list(itertools.accumulate(gaps, initial=0))
    ours = list(at_rate(((time * clock, duration * clock, number) for number, time in enumerate(times)), rate, "clip"))
    theirs = through_ffmpeg(times, duration, clock, rate)
    # At the very end ffmpeg's filter knows the last frame's length only where its caller says it; before that they are equal.
    assert ours[: len(theirs)] == theirs[: len(ours)]
    assert abs(len(ours) - len(theirs)) <= 1
    assert len(ours) == max(1, int((times[-1] + duration) * clock * rate + Fraction(1, 2)))


def test_rate_conversion_is_lazy_and_refuses_jumps() -> None:
    endless = ((Fraction(number, 24), Fraction(1, 24), number) for number in itertools.count())
    assert list(itertools.islice(at_rate(endless, Fraction(24), "clip"), 3)) == [0, 1, 2]
    with pytest.raises(MagiError, match="jump"):
        list(at_rate([(Fraction(0), Fraction(1), 0), (Fraction(10**9), Fraction(1), 1)], Fraction(24), "clip"))


def test_a_phone_video_is_turned_upright(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", moving(4))
    plain, data = read_video(path), bytearray(path.read_bytes())
    one, minus = (0x10000).to_bytes(4, "big"), (-0x10000).to_bytes(4, "big", signed=True)
    matrix = data.index(b"tkhd") + 4 + 40
    assert data[matrix : matrix + 4] == one
    # a quarter turn clockwise: (a b u, c d v, x y w) = (0 1 0, -1 0 0, 0 0 1)
    zero = bytes(4)
    data[matrix : matrix + 36] = zero + one + zero + minus + zero * 4 + (0x40000000).to_bytes(4, "big")
    path.write_bytes(data)
    assert (read_video(path) == np.rot90(plain, -1, axes=(1, 2))).all()


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    good = write(tmp_path / "good.mp4", moving(24)).read_bytes()
    with VideoWriter(tmp_path / "x.webm") as writer:
        writer.append(moving(24))
    webm = (tmp_path / "x.webm").read_bytes()
    table = {
        "empty.mp4": b"",
        "text.mp4": b"2s: a red circle",
        "zeros.mp4": bytes(5000),
        "head.mp4": good[:40],
        "cut.mp4": good[: good.index(b"mdat") - 200],
        "noise.mp4": good[:200] + bytes(range(256)) * 20,
        "head.webm": webm[:60],
        "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "list.ffconcat": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
        "sound.wav": b"RIFF\x28\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\4\0\0\0\0\0\0\0",
    }
    for name, data in table.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MagiError, match=name.replace(".", r"\.")):
            read_video(tmp_path / name)
    for name in ("none.mp4", "", "a\0.mp4", "http://127.0.0.1:9/a.mp4", "x" * 300):
        with pytest.raises(MagiError, match=r"does not exist|cannot be read"):
            read_video(Path(f"{tmp_path}/{name}"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(MagiError, match="no PNG"):
        read_metadata(tmp_path / "folder")


@pytest.mark.parametrize(
    "use", [lambda path: VideoWriter(path), lambda path: read_video(path), lambda path: read_metadata(path)]
)
def test_without_pyav_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MagiError, match=r"comfyui-magi\[video\]"):
        use(tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write(tmp_path / "made" / "on the way" / "clip.mp4", moving(2))
    assert len(read_video(tmp_path / "made" / "on the way" / "clip.mp4")) == 2
