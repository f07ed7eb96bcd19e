"""Images in every form to pixels: those of transformers' image processors over Pillow, to the last bit."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.pixels import ImageReader, as_images, image_files
from pocketformer.sources.images import read_preprocessing

SETTINGS: dict[str, Any] = {
    "height": 24,
    "width": 32,
    "resize": {"height": 24, "width": 32},
    "resample": "bilinear",
    "crop": False,
    "channels": "rgb",
    "scale": 1 / 255,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}
READER = ImageReader(SETTINGS)
SHORT = {"shortest_edge": 30}
ODD = {"image_mean": [0.3, 0.45, 0.61], "image_std": [0.2, 0.31, 0.27]}
PROCESSORS = {
    "exact": ViTImageProcessorPil(size={"height": 24, "width": 32}, **ODD),
    "nearest": ViTImageProcessorPil(size={"height": 24, "width": 32}, resample=0),
    "crop": DeiTImageProcessorPil(size={"height": 37, "width": 41}, crop_size={"height": 24, "width": 32}),
    "short": CLIPImageProcessorPil(size=SHORT, crop_size={"height": 28, "width": 28}),
    "larger crop": BitImageProcessorPil(size=SHORT, crop_size={"height": 45, "width": 33}, **ODD),
    "lanczos": BitImageProcessorPil(size=SHORT, resample=1, crop_size={"height": 28, "width": 28}),
    "plain": SiglipImageProcessorPil(size={"height": 24, "width": 24}, do_normalize=False),
    "unscaled": SiglipImageProcessorPil(size={"height": 24, "width": 24}, do_rescale=False, **ODD),
    "crop alone": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 28, "width": 51}),
}


def picture(height: int = 40, width: int = 61, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(processor: Any, image: Image.Image) -> np.ndarray:
    """What the reference makes of an image in RGB, channels last."""
    made = processor(image, return_tensors="np", do_convert_rgb=True)["pixel_values"][0]
    return np.moveaxis(made, 0, -1).reshape(-1, 3)


@pytest.mark.parametrize("name", PROCESSORS)
def test_settings_give_the_same_bits(name: str, tmp_path: Path) -> None:
    PROCESSORS[name].save_pretrained(tmp_path)
    reader = ImageReader(read_preprocessing(tmp_path))
    for image in (picture(), picture(70, 33), picture(20, 20), picture(1, 9)):
        found, expected = reader.pixels(image), pixels(PROCESSORS[name], image)
        assert found.dtype == np.float32
        assert found.tobytes() == expected.tobytes()


def test_a_processor_beside_a_tokenizer(tmp_path: Path) -> None:
    """What a whole CLIP is saved with."""
    (tmp_path / "processor_config.json").write_text('{"image_processor": ' + PROCESSORS["short"].to_json_string() + "}")
    assert read_preprocessing(tmp_path)["resize"] == {"shortest": 30}


def test_settings_of_old_files(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3}')
    found = read_preprocessing(tmp_path)
    assert (found["resize"], found["crop"], found["height"]) == ({"shortest": 224}, True, 224)
    assert found["mean"][0] == 0.48145466
    path.write_text('{"size": 96, "do_resize": true, "do_normalize": true, "image_mean": [0, 0, 0], "image_std": 1}')
    found = read_preprocessing(tmp_path)
    assert (found["resize"], found["crop"]) == ({"height": 96, "width": 96}, False)
    assert (found["mean"], found["std"]) == ([0.0] * 3, [1.0] * 3)
    path.write_text('{"size": 96, "do_flip_channel_order": true, "do_normalize": false}')
    reader, image = ImageReader(read_preprocessing(tmp_path)), picture(96, 96)
    np.testing.assert_array_equal(reader.pixels(image)[:, 0] * 255, np.asarray(image)[..., 2].ravel())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (None, CheckpointError, "preprocessor_config.json is missing, which says how images become pixels"),
        ('{"crop_pct": 0.9}', UnsupportedModelError, "'crop_pct' is 0.9; this setting is not honoured"),
        ('{"do_pad": true}', UnsupportedModelError, "'do_pad' is True"),
        (
            '{"image_processor_type": "OwlViTImageProcessor"}',
            UnsupportedModelError,
            "'OwlViTImageProcessor'; supported",
        ),
        ('{"size": {"shortest_edge": 24}}', UnsupportedModelError, "images have no common size"),
        (
            '{"size": {"shortest_edge": 24, "longest_edge": 48}}',
            UnsupportedModelError,
            "supported are height and width",
        ),
        ('{"do_resize": false}', UnsupportedModelError, "'do_resize' is False"),
        ('{"do_center_crop": true}', UnsupportedModelError, "'crop_size' is None"),
        ('{"size": 0}', CheckpointError, "sizes must be integers in 1…16384"),
        ('{"resample": 9}', CheckpointError, "'resample' is 9"),
        ('{"image_mean": [1, 2]}', CheckpointError, r"'image_mean' is \[1, 2\]; it must be three numbers"),
    ],
)
def test_settings_that_are_refused(settings: str | None, error: type[Exception], message: str, tmp_path: Path) -> None:
    if settings is not None:
        (tmp_path / "preprocessor_config.json").write_text(settings)
    with pytest.raises(error, match=message):
        read_preprocessing(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert READER.pixels(data).tobytes() == READER.pixels(upright).tobytes()
    assert upright.size == (image.size if orientation < 5 else image.size[::-1])


def test_modes() -> None:
    """Grey, palettes and transparency become RGB as in the reference, which puts white behind."""
    clear = picture()
    clear.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 61)).astype(np.uint8)))
    palette = picture().quantize(17)
    holes = encoded(palette, "PNG", transparency=3)
    for image in (
        picture().convert("L"),
        picture().convert("1"),
        clear,
        clear.convert("LA"),
        palette,
        Image.open(io.BytesIO(holes)),
        picture().convert("CMYK"),
        picture().convert("YCbCr"),
    ):
        expected = pixels(PROCESSORS["exact"], image)
        settings = {**SETTINGS, "mean": ODD["image_mean"], "std": ODD["image_std"]}
        assert ImageReader(settings).pixels(image).tobytes() == expected.tobytes(), image.mode
    deep = Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(50, 80))
    with pytest.raises(ValueError, match=r"photo has the Pillow mode 'I;16'; convert it to 8 bits a channel"):
        READER.pixels(deep, "photo")


def test_every_form_of_one_image(tmp_path: Path) -> None:
    image = picture()
    expected, data = READER.pixels(image).tobytes(), encoded(image)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for form in (path, str(path), data, bytearray(data), memoryview(data), np.asarray(image)):
        assert READER.pixels(form).tobytes() == expected
    frames = [image, picture(seed=1)]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        animated = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        first = Image.open(io.BytesIO(animated)).convert("RGB")
        assert READER.pixels(animated).tobytes() == READER.pixels(first).tobytes(), kind


def test_arrays_of_the_models_own_size_need_no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    own = np.asarray(picture(24, 32))
    expected = READER.pixels(Image.fromarray(own))
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert READER.pixels(own).tobytes() == expected.tobytes()
    assert READER.pixels(expected.reshape(24, 32, 3)).tobytes() == expected.tobytes()
    for image in (np.asarray(own)[:-1], b"", "photo.jpg"):
        with pytest.raises(ImportError, match=r"needs Pillow: pip install 'pocketformer\[vision\]'"):
            READER.pixels(image)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (HEIC, ValueError, "photo is HEIC, which is not read; convert it to JPEG or PNG"),
        (HEIC.replace(b"ftypheic", b"ftypavif"), ValueError, "photo is AVIF, which is not read"),
        (b"%PDF-1.7", ValueError, "photo is PDF, which is not read"),
        (b"", ValueError, r"no image of a known format \(it begins with b''\)"),
        (b"hello, world", ValueError, r"no image of a known format \(it begins with b'hello, w'\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", ValueError, "no image of a known format"),
        (encoded(picture())[:-900], ValueError, "photo is damaged"),
        (encoded(picture(), "JPEG")[:700], ValueError, "photo is damaged"),
        (encoded(picture(), "GIF")[:-900], ValueError, "photo is damaged"),
        (Path("nowhere.jpg"), FileNotFoundError, "nowhere.jpg"),
        (3, TypeError, "photo is int; pass a path, the bytes of a file, a Pillow image or a numpy array"),
        (None, TypeError, "photo is NoneType"),
        (np.zeros((24, 32)), TypeError, "photo is float64; pass a numpy array of uint8 or float32"),
        (np.zeros((24, 32), np.uint8), ValueError, r"photo has shape \[24, 32\]; it must be \[height, width, 3\]"),
        (np.zeros((24, 32, 4), np.uint8), ValueError, r"photo has shape \[24, 32, 4\]"),
        (np.zeros((3, 24, 32), np.float32), ValueError, r"photo has shape \[3, 24, 32\]"),
        (np.zeros((0, 32, 3), np.uint8), ValueError, r"photo has shape \[0, 32, 3\]"),
        (
            np.zeros((23, 32, 3), np.float32),
            ValueError,
            r"photo is float32 of shape \[23, 32, 3\]; it must be \[24, 32",
        ),
        (np.full((24, 32, 3), np.nan, np.float32), ValueError, "photo holds nan; pixels must be finite"),
        (np.full((24, 32, 3), np.inf, np.float32), ValueError, "photo holds inf"),
    ],
)
def test_what_is_no_image(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        READER.pixels(image, "photo")


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded(picture(), "JPEG")[:700])
    with pytest.raises(ValueError, match=r"photo \(.*half\.jpg\) is damaged"):
        READER.pixels(path, "photo")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_no_reason_to_refuse() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\0\0\0")
    assert READER.pixels(data).shape == (24 * 32, 3)


def png(width: int, height: int) -> bytes:
    """A header that promises so many pixels, and a few bytes of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [(65535, 65535), (65535, 2100), (2**31 - 1, 1)])
def test_bombs(size: tuple[int, int], tmp_path: Path) -> None:
    data, path = png(*size), tmp_path / "bomb.png"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        for source in (data, path):
            with pytest.raises(ValueError, match="photo"):
                READER.pixels(source, "photo")
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_a_line_that_would_become_a_wall() -> None:
    reader = ImageReader({**SETTINGS, "resize": {"shortest": 224}, "crop": True})
    with pytest.raises(ValueError, match=r"1 × 9000 pixels, whose shorter side cannot become 224: .* 2016000; cut it"):
        reader.pixels(np.zeros((9000, 1, 3), np.uint8))


def test_single_or_several() -> None:
    image = picture(24, 32)
    array = np.asarray(image)
    for single in ("a.png", Path("a.png"), b"x", image, array, array[..., 0]):
        assert as_images(single)[1]
    for several in ([image], (image for _ in range(2)), array[None], [], ("a.png", "b.png")):
        listed, single_one = as_images(several)
        assert not single_one
        assert next(listed, None) is not None or several == []
    for wrong in ({"a": image}, {"a.png"}, 3):
        with pytest.raises(TypeError, match="images is"):
            as_images(wrong)


def test_folders(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    found = image_files([tmp_path / "notes.txt", tmp_path])
    assert [Path(file).name for file in found] == ["notes.txt", "a.png", "b.JPG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images; known are files that end in \.jpg"):
        image_files([tmp_path / "empty"])
