"""Pictures: every kind is read as 8-bit RGB, resized by the stated rule, and nothing odd gets past the reader."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from magi_core.errors import MagiError
from magi_core.images import Frames, contact_sheet, read_image, read_keyframe, resize, write_png

RED, BLACK = [255, 0, 0], [0, 0, 0]


def colours(height: int = 6, width: int = 8) -> Frames:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_png(tmp_path / "new" / "a.png", colours(), {"prompt": "Kreis ☺", "workflow": "{}"})
    assert (read_image(tmp_path / "new" / "a.png") == colours()).all()
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.info == {"prompt": "Kreis ☺", "workflow": "{}"}
    for suffix in ("bmp", "tiff", "ppm", "tga"):
        Image.fromarray(colours()).save(tmp_path / f"a.{suffix}")
        assert (read_image(tmp_path / f"a.{suffix}") == colours()).all()
    for suffix in ("jpg", "webp"):
        Image.new("RGB", (8, 6), (200, 100, 50)).save(tmp_path / f"a.{suffix}")
        assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - [200, 100, 50]).max() < 6
    (tmp_path / "file").touch()
    with pytest.raises(MagiError, match="cannot write"):
        write_png(tmp_path / "file" / "a.png", colours())


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    def read(image: Image.Image, **options: object) -> list:
        path = tmp_path / f"{image.mode.replace(';', '_')}.{'tiff' if image.mode == 'CMYK' else 'png'}"
        image.save(path, **options)
        return read_image(path)[0, 0].tolist()

    assert read(Image.new("L", (2, 2), 99)) == [99] * 3
    assert read(Image.new("1", (2, 2), 1)) == [255] * 3
    assert read(Image.new("CMYK", (2, 2), (0, 255, 255, 0))) == RED
    assert read(Image.new("RGBA", (2, 2), (255, 0, 0, 0))) == BLACK
    assert read(Image.new("RGBA", (2, 2), (200, 100, 0, 128))) == [100, 50, 0]
    assert read(Image.new("LA", (2, 2), (200, 128))) == [100] * 3
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert read(palette) == RED
    assert read(palette, transparency=1) == BLACK
    for level, expected in ((0, 0), (65535, 255), (32896, 128), (257, 1)):
        assert read(Image.fromarray(np.full((2, 2), level, np.uint16))) == [expected] * 3


def test_turned_and_moving_pictures(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise is needed
    Image.fromarray(colours()).save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png") == np.rot90(colours(), -1)).all()
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    red.save(tmp_path / "moving.gif", save_all=True, append_images=[blue])
    assert read_image(tmp_path / "moving.gif")[0, 0].tolist() == RED


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises more than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_what_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    write_png(tmp_path / "good.png", np.zeros((64, 64, 3), np.uint8))
    good = (tmp_path / "good.png").read_bytes()
    Image.new("F", (2, 2)).save(tmp_path / "float.tiff")
    table = {
        "empty.png": b"",
        "text.png": b"a red circle",
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
        "cut.png": good[: len(good) - 40],
        "flipped.png": good[:50] + bytes([good[50] ^ 255]) + good[51:],
        "big.png": png_of_size(9_000, 9_000),
        "bigger.png": png_of_size(60_000, 60_000),
        "short.png": png_of_size(1_000, 1_000),
        "float.tiff": (tmp_path / "float.tiff").read_bytes(),
    }
    for name, data in table.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MagiError, match=name):
            read_image(tmp_path / name)
    for name in ("none.png", "", "a\0.png", "x" * 5000):
        with pytest.raises(MagiError, match="does not exist"):
            read_image(Path(f"{tmp_path}/{name}"))


def test_keyframes_stay_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "board"
    write_png(folder / "in" / "a.png", colours())
    write_png(tmp_path / "secret.png", colours())
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    os.symlink(folder / "loop.png", folder / "loop.png")
    assert (read_keyframe("in/a.png", folder) == colours()).all()
    for name, says in (
        ("../secret.png", "outside"),
        ("in/../../secret.png", "outside"),
        (str(tmp_path / "secret.png"), "outside"),
        ("link.png", "outside"),
        ("loop.png", "loop.png"),
        ("none.png", "not in"),
        ("in", "not in"),
        ("a\0.png", "no usable"),
    ):
        with pytest.raises(MagiError, match=says):
            read_keyframe(name, folder)


# --- resizing ----------------------------------------------------------------------------------------------------------------


def test_fit_rules() -> None:
    """A 2:1 picture, left half red and right half blue, into a square."""
    wide = np.zeros((1, 32, 64, 3), np.uint8)
    wide[:, :, :32, 0], wide[:, :, 32:, 2] = 255, 255
    stretched, cropped, padded = (resize(wide, 32, 32, fit)[0] for fit in ("stretch", "crop", "pad"))
    for picture in (stretched, cropped):
        assert picture[16, 2].tolist() == RED and picture[16, 29].tolist() == [0, 0, 255]
    assert (cropped[:, :15] == RED).all() and (cropped[:, 17:] == [0, 0, 255]).all()
    assert (padded[:8] == 0).all() and (padded[24:] == 0).all() and padded[8:24].any(axis=-1).all()
    tall = wide.swapaxes(1, 2)
    assert (resize(tall, 32, 32, "pad")[0, :, :8] == 0).all()
    assert resize(wide, 32, 64, "crop") is wide


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.abs(resize(stripes, 8, 8, "stretch").astype(int) - 128).max() < 8


@settings(deadline=None)
@given(*[st.integers(1, 40)] * 4, st.sampled_from(["stretch", "crop", "pad"]))
def test_any_size_to_any_size(h: int, w: int, height: int, width: int, fit) -> None:
    resized = resize(np.full((2, h, w, 3), 200, np.uint8), height, width, fit)
    assert resized.shape == (2, height, width, 3) and resized.dtype == np.uint8
    filled = (resized == 200).all(axis=-1)
    assert filled.any()
    if fit != "pad":
        assert filled.all()


def test_bad_sizes_and_rules() -> None:
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    for height, width, fit in (
        (0, 4, "pad"),
        (4, -1, "pad"),
        (4, 20_000, "pad"),
        (4.0, 5, "pad"),
        (True, 5, "pad"),
        (5, 5, "fill"),
    ):
        with pytest.raises(MagiError, match=r"height|width|fit"):
            resize(frames, height, width, fit)  # type: ignore[arg-type]
    for wrong in (frames.astype(float), frames[0], frames[:0], frames[..., :1]):
        with pytest.raises(MagiError, match="uint8"):
            resize(wrong, 8, 8, "pad")


def test_contact_sheet_shows_first_and_last_frame_under_a_label() -> None:
    ramp = np.zeros((24, 16, 16, 3), np.uint8)
    ramp[..., 0] = np.arange(24, dtype=np.uint8)[:, None, None] * 10
    sheet = np.asarray(
        contact_sheet([("2s: a red circle", ramp), ("läuft 圆 " * 100, ramp[:2]), ("", ramp)], columns=4, cell=64)
    )
    shown = sheet[..., 0].max()
    assert shown >= 230
    row = sheet[2 + 18 + 32]  # through the middle of the first row of pictures
    assert [int(row[2 + 66 * column + 32, 0]) for column in range(4)] == [0, 80, 150, 230]
    band = sheet[2 : 2 + 18]
    assert (band > 200).sum() > 50, "the label can be seen"
    assert sheet.shape[1] == 2 + 4 * 66
    for bad in ([], [("a", ramp[:0])]):
        with pytest.raises(MagiError):
            contact_sheet(bad)
