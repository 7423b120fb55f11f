"""Between the RGB of pictures and the YUV of video files, the same whatever PyAV is installed (14.2 and later).

Notable: before PyAV 17 a conversion used BT.601's matrix whatever the frame says, unless both matrices were named and differed; with
names it took the range of both sides for limited, unless that was named too. From 17 on it
shares a picture out to one thread per core, which takes eight times as long for a small one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from magi_core.images import Frames

BT709, _BT601 = 1, 5
MPEG_RANGE, _FULL_RANGE = 1, 2
_MATRICES = range(1, 11)
"""Which a file can name; 2 is "not said", for which FFmpeg takes BT.601."""
_NOT_SAID = 2


def rgb_of(frame: Any) -> Frames:
    """A decoded frame as uint8 [H, W, 3], by the matrix and the range that it names."""
    named = int(frame.colorspace)
    matrix = named if named in _MATRICES and named != _NOT_SAID else _BT601
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=matrix,
        dst_colorspace=_BT601 if matrix != _BT601 else BT709,  # means nothing for RGB; has to differ
        src_color_range=_FULL_RANGE if int(frame.color_range) == _FULL_RANGE else MPEG_RANGE,
        dst_color_range=_FULL_RANGE,
    )
    return np.ascontiguousarray(rgb.to_ndarray())


def to_yuv420(av: Any) -> Callable[[Frames], Any]:
    """A converter of pictures uint8 [H, W, 3], all of one size, to frames in yuv420p, BT.709, limited range.

    One for many pictures: to set it up takes longer than to convert a small one, and holds up other threads.
    """
    converter = av.video.reformatter.VideoReformatter()
    one_thread = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}

    def convert(picture: Frames) -> Any:
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        return converter.reformat(frame, format="yuv420p", dst_colorspace=BT709, **one_thread)

    return convert
