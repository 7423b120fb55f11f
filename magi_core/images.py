"""Still pictures: read any image as 8-bit RGB, resize by a stated rule, lay frames out on a contact sheet, write PNG.

Frames are uint8 arrays, [H,W,3] for one picture and [T,H,W,3] for several.

Notable: what Pillow may open is a list of plain bitmap formats, because some of its readers start other programs; sizes are
checked before anything is decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from magi_core.errors import MagiError, whole_number
from magi_core.files import atomic_write

Fit = Literal["stretch", "crop", "pad"]
"""How a picture of another aspect fills a frame: distorted (what MAGI-1's own preparation does), cut, or with black bars."""

Frames = NDArray[np.uint8]

MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA")


def read_image(path: Path) -> Frames:
    """Read a picture as uint8 [H,W,3], turned as its EXIF data says, transparency over black; of an animation the first frame.

    Raises MagiError when the file is missing, is no PNG, JPEG, WebP, BMP, GIF, TIFF, PPM or TGA, is damaged, has floating-point
    pixels, or more than 64 million of them.
    """
    path = Path(path)
    if not _is_file(path):
        raise MagiError(f"the image {str(path)!r} does not exist or is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged or big files; our own checks speak of them
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise MagiError(
                        f"the image {path} has {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are read: make it smaller"
                    )
                return np.asarray(_rgb(ImageOps.exif_transpose(image), path))
    except MagiError:
        raise
    except UnidentifiedImageError as error:
        raise MagiError(f"{path} is not an image that can be read; use PNG, JPEG, WebP, BMP, GIF or TIFF") from error
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them raise
        raise MagiError(f"the image {path} cannot be read, it is damaged or incomplete: {error}") from error


def read_keyframe(name: str, folder: Path) -> Frames:
    """Read a storyboard's keyframe, a file inside ``folder``, as ``read_image`` does.

    Raises MagiError also when the name, or a link behind it, leads out of the folder.
    """
    folder = Path(folder).resolve()
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a loop of links
        raise MagiError(f"the keyframe {name!r} is no usable file name: {error}") from error
    if not path.is_relative_to(folder):
        raise MagiError(
            f"the keyframe {name!r} lies outside of the storyboard's folder {folder}; put the image into that folder"
        )
    if not _is_file(path):
        raise MagiError(f"the keyframe {name!r} is not in the storyboard's folder {folder}")
    return read_image(path)


def resize(frames: Frames, height: int, width: int, fit: Fit) -> Frames:
    """Resize [T,H,W,3] to [T,height,width,3] with antialiased bicubic.

    ``stretch`` ignores the aspect; ``crop`` keeps it and cuts the longer side off evenly; ``pad`` keeps it and centres the
    picture on black. Raises MagiError for an unknown rule or a size outside of 1..16384.
    """
    check_frames(frames)
    check_size(height, width)
    if fit not in get_args(Fit):
        raise MagiError(f"fit is {fit!r}; it must be one of {', '.join(get_args(Fit))}")
    _, h, w, _ = frames.shape
    if (h, w) == (height, width):
        return frames
    box, inner = (0.0, 0.0, float(w), float(h)), (width, height)
    if fit == "crop":
        scale = min(w / width, h / height)
        left, top = (w - width * scale) / 2, (h - height * scale) / 2
        box = (max(0.0, left), max(0.0, top), min(float(w), left + width * scale), min(float(h), top + height * scale))
    elif fit == "pad":
        scale = min(width / w, height / h)
        inner = (min(width, max(1, round(w * scale))), min(height, max(1, round(h * scale))))
    left_bar, top_bar = (width - inner[0]) // 2, (height - inner[1]) // 2
    resized = np.zeros((len(frames), height, width, 3), np.uint8)
    for frame, target in zip(frames, resized, strict=True):
        picture = Image.fromarray(frame).resize(inner, Image.Resampling.BICUBIC, box=box)
        target[top_bar : top_bar + inner[1], left_bar : left_bar + inner[0]] = np.asarray(picture)
    return resized


def contact_sheet(rows: Sequence[tuple[str, Frames]], *, columns: int = 8, cell: int = 128) -> Image.Image:
    """One line of pictures per (label, frames [T,H,W,3]), evenly spaced from the first frame to the last, the label above.

    ``cell`` is the width of a picture in pixels; its height follows from the first row. Rows with fewer frames than ``columns``
    show all they have. Raises MagiError when there is nothing to show.
    """
    if not rows or columns < 1 or cell < 8:
        raise MagiError("a contact sheet needs at least one row, one column and cells of 8 pixels")
    for _, frames in rows:
        check_frames(frames)
    _, h, w, _ = rows[0][1].shape
    cell_height, gap, band = max(1, round(cell * h / w)), max(2, cell // 32), max(18, cell // 6)
    font = ImageFont.load_default(size=band * 2 // 3)
    across = min(columns, max(len(frames) for _, frames in rows))
    pitch = band + cell_height + gap
    sheet = Image.new("RGB", (gap + across * (cell + gap), gap + len(rows) * pitch), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    for row, (label, frames) in enumerate(rows):
        top = gap + row * pitch
        draw.text((gap, top), _shorten(label, font, sheet.width - 2 * gap), fill=(235, 235, 235), font=font)
        shown = frames[np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)]
        for column, picture in enumerate(resize(shown, cell_height, cell, "pad")):
            sheet.paste(Image.fromarray(picture), (gap + column * (cell + gap), top + band))
    return sheet


def write_png(path: Path, image: Image.Image | Frames, metadata: Mapping[str, str] | None = None) -> None:
    """Write a picture (or uint8 [H,W,3]) as PNG with text entries, all or nothing. Raises MagiError when it cannot be written."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    try:
        with atomic_write(Path(path)) as temporary:
            picture.save(temporary, format="PNG", pnginfo=png_text(metadata or {}))
    except OSError as error:
        raise MagiError(f"cannot write {path}: {error.strerror or error}") from error


def png_text(metadata: Mapping[str, str]) -> PngInfo:
    """Text entries of a PNG; the ones that ComfyUI reads are called ``prompt`` and ``workflow``."""
    info = PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, value)
    return info


def check_frames(frames: Frames) -> None:
    """Raise MagiError unless ``frames`` is a uint8 array [T,H,W,3] that holds at least one pixel."""
    shape, dtype = getattr(frames, "shape", None), getattr(frames, "dtype", None)
    if dtype != np.uint8 or shape is None or len(shape) != 4 or shape[3] != 3 or not frames.size:
        raise MagiError(f"frames must be uint8 of shape [T,H,W,3] with T, H, W >= 1, not {dtype} {list(shape or [])}")


def check_size(height: int, width: int) -> None:
    """Raise MagiError unless both sides are whole numbers from 1 to 16384."""
    for name, side in (("height", height), ("width", width)):
        whole_number(f"{name} in pixels", side, 1, MAX_SIDE)


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise MagiError(f"the image {path} has floating-point pixels; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):  # 16 bits in one channel; 65535 is white
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(np.round(levels / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image.convert("RGB")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a NUL
        return False


def _shorten(label: str, font: Any, width: int) -> str:
    label = " ".join(label.split())[:500]
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "...") > width:
        label = label[:-1]
    return label + "..."
