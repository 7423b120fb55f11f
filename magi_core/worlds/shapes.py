"""What the synthetic worlds look like: four shapes, six colours, three backgrounds, drawn with anti-aliasing; and a fifth shape to be taught.

Coordinates are pixels, x to the right and y down; pixel (row i, column j) covers [j, j+1] x [i, i+1]. A shape's place is its
centroid, and its area at a given radius is about the same for all shapes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_core.errors import MagiError

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]

FRAME_SIZE = 64

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 50, 50),
    "green": (50, 205, 70),
    "blue": (60, 90, 245),
    "yellow": (245, 220, 50),
    "magenta": (230, 60, 220),
    "cyan": (50, 215, 230),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128)}

_TIP = 1.3  # circumradius of triangle and star in units of the radius, so that all shapes have a similar area
_HALF_SQUARE = 0.89
_ARM = 1.19  # from a cross's middle to the end of an arm, which is two thirds of this wide

# How far each outline reaches from its centroid, in units of the radius: (left, up), (right, down).
_REACH: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "circle": ((1.0, 1.0), (1.0, 1.0)),
    "square": ((_HALF_SQUARE, _HALF_SQUARE), (_HALF_SQUARE, _HALF_SQUARE)),
    "triangle": ((_TIP * math.sin(math.pi / 3), _TIP), (_TIP * math.sin(math.pi / 3), _TIP / 2)),
    "star": ((_TIP * math.sin(0.4 * math.pi), _TIP), (_TIP * math.sin(0.4 * math.pi), _TIP * math.cos(0.2 * math.pi))),
    "cross": ((_ARM, _ARM), (_ARM, _ARM)),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star")
NEW_SHAPE = "cross"
"""In no world: what a model that knows the worlds has never seen, and can be taught."""


def bounds(shape: str, radius: float) -> tuple[Floats, Floats]:
    """Lowest and highest centroid (x, y), each [2], at which the shape is still whole inside the frame."""
    low, high = _REACH[shape]
    return radius * np.array(low), FRAME_SIZE - radius * np.array(high)


def coverage(shape: str, radius: float, dx: Floats32, dy: Floats32) -> Floats32:
    """Share 0..1 of each pixel that the shape covers, anti-aliased over one pixel.

    dx, dy: pixel centre minus centroid in pixels, broadcast against each other. The regular shapes are folded onto one sector,
    where the outline is a single line, so the signed distance needs no loop over edges.
    """
    distance = np.hypot(dx, dy)
    if shape == "circle":
        outside = distance - radius
    else:
        angle = np.arctan2(dx, -dy)  # 0 is up, where triangle and star have a tip
        if shape == "square":
            outside = distance * np.cos(_fold_angle(angle, math.pi / 2)) - radius * _HALF_SQUARE
        elif shape == "triangle":
            outside = distance * np.cos(_fold_angle(angle + math.pi / 3, 2 * math.pi / 3)) - radius * _TIP / 2
        elif shape == "star":
            turn = np.abs(_fold_angle(angle, 0.4 * math.pi))
            notch = 0.5 * _TIP * np.array([math.sin(0.2 * math.pi), math.cos(0.2 * math.pi)])
            edge = np.array([0.0, _TIP]) - notch
            normal = np.array([edge[1], -edge[0]], np.float32) / np.float32(np.hypot(*edge))
            outside = distance * (normal[0] * np.sin(turn) + normal[1] * np.cos(turn)) - radius * _TIP * normal[1]
        elif shape == "cross":
            along, across = np.maximum(np.abs(dx), np.abs(dy)), np.minimum(np.abs(dx), np.abs(dy))
            outside = np.maximum(along - radius * _ARM, across - radius * _ARM / 3)
        else:
            raise MagiError(f"shape is '{shape}'; choose one of {', '.join(_REACH)}")
    cover: Floats32 = np.clip(0.5 - outside, 0.0, 1.0).astype(np.float32)
    return cover


def _fold_angle(angle: Any, sector: float) -> Any:
    """The angle to the nearest multiple of ``sector``, in -sector/2..sector/2."""
    return angle - sector * np.round(angle / sector)


def draw(
    shape: str, radius: float, centroids: Floats, colours: npt.NDArray[np.int_], background: tuple[int, int, int]
) -> Frames:
    """Frames [T, 64, 64, 3] uint8 of a shape at centroids [T, 2] (inside ``bounds``) in colours [T, 3] (0..255).

    Only a window around the object is computed, on a canvas with a margin, so that the window never needs clipping.
    """
    margin = math.ceil(_TIP * radius) + 2
    window = np.arange(-margin, margin)
    corner = np.floor(centroids).astype(int)
    columns, rows = corner[:, None, 0] + window, corner[:, None, 1] + window  # pixel indices [T, window]
    dx = (columns + 0.5 - centroids[:, None, 0]).astype(np.float32)[:, None, :]
    dy = (rows + 0.5 - centroids[:, None, 1]).astype(np.float32)[:, :, None]
    cover = coverage(shape, radius, dx, dy)[..., None]
    base = np.array(background, np.float32)
    patch = base + cover * (colours.astype(np.float32)[:, None, None, :] - base)
    canvas = np.empty((len(centroids), FRAME_SIZE + 2 * margin, FRAME_SIZE + 2 * margin, 3), np.uint8)
    canvas[:] = np.array(background, np.uint8)
    time = np.arange(len(centroids))[:, None, None]
    canvas[time, rows[:, :, None] + margin, columns[:, None, :] + margin] = np.rint(patch)
    return np.ascontiguousarray(canvas[:, margin : margin + FRAME_SIZE, margin : margin + FRAME_SIZE])
