"""Images in the forms that callers have them to the pixels that a model reads, as its preprocessing says.

Equal to the last bit to the image processors of transformers over Pillow (their PIL backend). Pillow is the extra
``vision``, imported when the first image needs it: arrays of the model's own size do without.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels: TypeAlias = NDArray[np.float32]
ImageInput: TypeAlias = Any
"""A path, the bytes of a file, a Pillow image, or an array [height, width, 3] of uint8 or float32, red first."""

MAX_PIXELS = 1 << 27
"""The largest image that is decoded or made by resizing: 400 MB."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What Pillow reads by itself, without programs of others."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""What such files end in."""
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"avif": "AVIF"}
_MAGIC = {b"%PDF": "PDF", b"<svg": "SVG", b"<?xm": "XML or SVG", b"\0\0\0\x0cJXL": "JPEG XL", b"\xff\x0a": "JPEG XL"}
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # what undoes each orientation, by the numbers of Image.Transpose


class ImageReader:
    """Makes pixels for one model; ``settings`` is the ``image`` entry of its pocket file."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.shape = (settings["height"], settings["width"], 3)
        self._resize: Mapping[str, int] | None = settings["resize"]
        self._resample: str = settings["resample"]
        self._crop: bool = settings["crop"]
        self._reversed = settings["channels"] == "bgr"
        self._scale = float(settings["scale"])
        self._mean, self._std = (np.array(settings[name], np.float32) for name in ("mean", "std"))

    def pixels(self, image: ImageInput, name: str = "image") -> Pixels:
        """float32 [height · width, 3] of one image, which errors call ``name``.

        An array of the model's own size is neither resized nor cropped, and one of float32 taken as it is. Raises
        TypeError for what is no image, ValueError for one that is damaged, unknown, too large or of a wrong shape.
        """
        if isinstance(image, np.ndarray):
            if image.dtype not in (np.uint8, np.float32):
                raise TypeError(f"{name} is {image.dtype}; pass a numpy array of uint8 or float32")
            if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise ValueError(f"{name} has shape {list(image.shape)}; it must be [height, width, 3], red first")
            if image.dtype == np.float32:
                return self._as_it_is(image, name)
            if image.shape != self.shape:
                image = self._prepared(_pillow().fromarray(image), name)
        elif hasattr(image, "getbands"):
            image = self._prepared(image, name)
        else:
            with opened(image, name) as file:
                image = self._prepared(file, named(image, name))
        return self._scaled(image)

    def _as_it_is(self, image: Pixels, name: str) -> Pixels:
        if image.shape != self.shape:
            raise ValueError(
                f"{name} is float32 of shape {list(image.shape)}; it must be {list(self.shape)} and normalised: pass "
                "uint8, which is resized"
            )
        if not np.isfinite(image).all():
            raise ValueError(f"{name} holds {image[~np.isfinite(image)][0]}; pixels must be finite")
        return np.ascontiguousarray(image.reshape(-1, 3))

    def _prepared(self, image: Image, name: str) -> NDArray[np.uint8]:
        """uint8 of the model's size."""
        image = upright_rgb(image, name)
        if self._resize:
            width, height = self._resized(*image.size)
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"{name} has {image.width} × {image.height} pixels, whose shorter side cannot become "
                    f"{min(width, height)}: the longer one would be {max(width, height)}; cut it before"
                )
            image = image.resize((width, height), getattr(_pillow().Resampling, self._resample.upper()))
        pixels = np.asarray(image)
        if self._crop:
            pixels = centre(pixels, *self.shape[:2])
        if pixels.shape != self.shape:
            raise ValueError(f"{name} has shape {list(pixels.shape)}; the model takes {list(self.shape)}: resize it")
        return pixels

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        assert self._resize is not None
        if "shortest" not in self._resize:
            return self._resize["width"], self._resize["height"]
        short = self._resize["shortest"]
        long = int(short * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)

    def _scaled(self, image: NDArray[np.uint8]) -> Pixels:
        """The factor is multiplied in double precision and rounded once, mean and deviation in single."""
        pixels = (image.reshape(-1, 3).astype(np.float64) * self._scale).astype(np.float32)
        if self._reversed:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray((pixels - self._mean) / self._std)


def opened(source: str | os.PathLike[str] | bytes | bytearray | memoryview, name: str) -> Image:
    """The image in a file, or in the bytes of one, whose header was read; its pixels are read later."""
    pillow, file, what = _pillow(), None, named(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        file = io.BytesIO(source)
    elif not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"{name} is {type(source).__name__}; pass a path, the bytes of a file, a Pillow image or a numpy array"
        )
    try:
        image: Image = pillow.open(source if file is None else file, formats=FORMATS)
    except pillow.UnidentifiedImageError:
        raise ValueError(f"{what} is {_format(_start(source, file))}; convert it to JPEG or PNG") from None
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise ValueError(f"{what} is too large: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{what} is damaged: {error}") from None
    return image


def named(source: Any, name: str) -> str:
    """``name``, and the file that it is."""
    return f"{name} ({os.fspath(source)})" if isinstance(source, str | os.PathLike) else name


def upright_rgb(image: Image, name: str = "image") -> Image:
    """The first frame, turned as its EXIF orientation says, in RGB; what shines through is white."""
    pillow = _pillow()
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{name} has {image.width} × {image.height} pixels; the limit is {MAX_PIXELS}")
    if image.mode not in _MODES:
        raise ValueError(f"{name} has the Pillow mode {image.mode!r}; convert it to 8 bits a channel")
    try:
        image.load()
        turn = _TURNS.get(_orientation(image))
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            white = pillow.new("RGBA", image.size, (255, 255, 255, 255))
            image = pillow.alpha_composite(white, image.convert("RGBA"))
        image = image.convert("RGB")
        return image if turn is None else image.transpose(pillow.Transpose(turn))
    except (OSError, SyntaxError, EOFError, ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{name} is damaged: {error}") from None


def _orientation(image: Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever a camera wrote: the pixels are what matters
        return 1


def centre(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle [height, width, 3] of ``pixels``, black around it where they are fewer."""
    down, across = pixels.shape[:2]
    padded = np.zeros((max(height, down), max(width, across), 3), np.uint8)
    top, left = -((down - padded.shape[0]) // 2), -((across - padded.shape[1]) // 2)
    padded[top : top + down, left : left + across] = pixels
    top, left = (down - height) // 2 + top, (across - width) // 2 + left
    return padded[top : top + height, left : left + width]


def as_images(images: ImageInput | Iterable[ImageInput]) -> tuple[Iterator[ImageInput], bool]:
    """The images one after the other, read when they are asked for, and whether there was a single one."""
    single = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview) or (
        images.ndim < 4 if isinstance(images, np.ndarray) else hasattr(images, "getbands")
    )
    if single:
        return iter([images]), True
    if isinstance(images, Mapping | set | frozenset) or not isinstance(images, Iterable):
        raise TypeError(
            f"images is {type(images).__name__}; pass a path, the bytes of a file, a Pillow image, a numpy array, or a "
            "list of them"
        )
    return iter(images), False


def image_files(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """``paths``, with the image files that lie in a folder in its place, by name. Raises ValueError for one without."""
    found: list[str] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(str(path))
            continue
        inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise ValueError(f"{path} holds no images; known are files that end in {', '.join(SUFFIXES)}")
        found += inside
    return found


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            "reading and resizing images needs Pillow: pip install 'pocketformer[vision]'; numpy arrays of the model's "
            "own size, [height, width, 3], do without"
        ) from None
    return Image


def _start(path: Any, opened_file: io.BytesIO | None) -> bytes:
    if opened_file is not None:
        return opened_file.getvalue()[:16]
    with open(path, "rb") as file:
        return file.read(16)


def _format(start: bytes) -> str:
    """What a file that begins with ``start`` may be."""
    if start[4:8] == b"ftyp":
        kind = _BRANDS.get(start[8:12], f"an MP4 kind of file ({start[8:12].decode('ascii', 'replace')})")
        return f"{kind}, which is not read"
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")
    return f"{kind}, which is not read" if kind else f"no image of a known format (it begins with {start[:8]!r})"
