r"""Says what a camera sees, frame by frame, and how many frames a second that makes; a still scene costs nothing.

    pocketformer compress deit-tiny-patch16-224 -o deit.pocket
    ffmpeg -f v4l2 -i /dev/video0 -f rawvideo -pix_fmt rgb24 -s 640x480 - | \
      python examples/camera.py deit.pocket --frame 640x480
    python examples/camera.py deit.pocket --folder frames/

A frame goes through the network where some part of the picture has changed since the last that did: means over cells
of 16 × 16 pixels are compared, which the noise of a camera hardly moves.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import pocketformer
from pocketformer.tasks.frames import raw_frames
from pocketformer.pixels import image_files, opened, upright_rgb

CELL = 16
Frame = NDArray[np.uint8]


class Watched(NamedTuple):
    """What was made of a stream: frames that came, those that went through the network, and the time they took."""

    frames: int
    seen: int
    seconds: float

    def __str__(self) -> str:
        speed = self.frames / max(self.seconds, 1e-9)
        return f"{self.frames} frames, {self.frames - self.seen} of them unchanged, {speed:.1f} frames a second"


def cells(frame: Frame) -> NDArray[np.float32]:
    """Means of the frame's cells, float32 [rows, columns, 3]; one cell at least."""
    height, width = (max(side // CELL, 1) for side in frame.shape[:2])
    cut = frame[: height * (frame.shape[0] // height), : width * (frame.shape[1] // width)]
    parts = cut.reshape(height, -1, width, cut.shape[1] // width, 3)
    return parts.mean(axis=(1, 3), dtype=np.float32)


def watch(model: pocketformer.ImageClassifier, frames: Iterator[Frame], least_change: float) -> Watched:
    """Prints the likeliest label of each frame that differs from the last one seen by ``least_change`` of 255 in some
    cell."""
    begin, last, seen, number = time.perf_counter(), None, 0, -1
    for number, frame in enumerate(frames):
        now = cells(frame)
        if last is not None and last.shape == now.shape and np.abs(now - last).max() < least_change:
            continue
        last, seen = now, seen + 1
        label, score = model.classify(frame, top_k=1)[0]
        speed = (number + 1) / (time.perf_counter() - begin)
        print(f"frame {number}: {label} {score:.2f} ({speed:.1f} frames a second)", flush=True)
    return Watched(number + 1, seen, time.perf_counter() - begin)


def files_of(folder: str) -> Iterator[Frame]:
    """The images of ``folder`` in the order of their names."""
    for path in image_files([folder]):
        with opened(path, path) as image:
            yield np.asarray(upright_rgb(image, path))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Label the frames of a camera.")
    parser.add_argument("model", help="a pocket file that classifies images")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--frame", metavar="WIDTHxHEIGHT", help="read raw RGB frames of this size from stdin")
    source.add_argument("--folder", help="read the images of a folder, in the order of their names")
    parser.add_argument("--change", type=float, default=6.0, help="of 255; less in every cell is none (default: 6)")
    args = parser.parse_args(arguments)
    model = pocketformer.ImageClassifier.load(args.model)
    if args.folder:
        frames = files_of(args.folder)
    else:
        width, height = (int(side) for side in args.frame.split("x"))
        frames = raw_frames(sys.stdin.buffer, width, height)
    print(watch(model, frames, args.change))


if __name__ == "__main__":
    main()
