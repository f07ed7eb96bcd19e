"""Raw frames of a camera or a video, one after the other out of a pipe or a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 1 << 14
"""The most lines of a frame, and pixels of a line."""


def raw_frames(file: BinaryIO, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """uint8 [height, width, 3] of each frame in ``file``, red first, line by line, with nothing between them: what
    ``ffmpeg -i … -f rawvideo -pix_fmt rgb24 -`` writes. One is in memory at a time.

    Raises ValueError for sizes outside of 1…16384, and at the end of a file that breaks off within a frame.
    """
    for name, side in (("width", width), ("height", height)):
        if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{name} is {side!r}; it must be an integer in 1…{MAX_SIDE}")
    return _frames(file, width, height)


def _frames(file: BinaryIO, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    size, number = width * height * 3, 0
    while True:
        frame = np.empty((height, width, 3), np.uint8)
        held, found = frame.data.cast("B"), 0
        while found < size:
            count = file.readinto(held[found:])  # type: ignore[attr-defined]  # every buffered reader has it
            if not count:
                break
            found += count
        if not found:
            return
        if found < size:
            raise ValueError(
                f"frame {number} has {found} of {size} bytes; are they RGB of {width} × {height} pixels, 3 bytes each?"
            )
        yield frame
        number += 1
