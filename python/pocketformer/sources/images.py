"""How a checkpoint makes pixels of images: ``preprocessor_config.json`` of transformers' image processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedModelError
from .config import Config, read_json

FILE, PROCESSOR = "preprocessor_config.json", "processor_config.json"
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters in the order of their numbers, which is how the file names them."""

_HALF, _CLIP = ([0.5] * 3, [0.5] * 3), ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_CROP = {"crop_size": {"height": 224, "width": 224}}
_SHORT = {"resample": 3, "size": {"shortest_edge": 224}, **_CROP}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {"resample": 2, "size": {"height": 224, "width": 224}, "mean_std": _HALF},
    "BeitImageProcessor": {"resample": 3, "size": {"height": 224, "width": 224}, **_CROP, "mean_std": _HALF},
    "DeiTImageProcessor": {**_SHORT, "size": {"height": 256, "width": 256}, "do_center_crop": True, "mean_std": _HALF},
    "BitImageProcessor": {**_SHORT, "do_center_crop": True, "mean_std": _CLIP, "shorter": True},
    "CLIPImageProcessor": {**_SHORT, "do_center_crop": True, "mean_std": _CLIP, "shorter": True},
    "SiglipImageProcessor": {"resample": 3, "size": {"height": 224, "width": 224}, "mean_std": _HALF, "shorter": True},
    "EfficientFormerImageProcessor": {
        **_SHORT,
        "size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "mean_std": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    },
    "MobileViTImageProcessor": {
        **_SHORT,
        "crop_size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "do_flip_channel_order": True,
        "mean_std": None,
        "shorter": True,
    },
}
"""What each class of processors does where the file is silent; ``shorter``: a lone size is that of the shorter side.
Without ``mean_std`` none is subtracted, whatever the file says."""

_SILENT = frozenset(
    [
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "_processor_class",
        "_valid_processor_keys",
        "data_format",
        "input_data_format",
        "return_tensors",
        "device",
        "disable_grouping",
        "do_convert_rgb",
        "image_std",
        "image_mean",
        "resample",
        "size",
        "crop_size",
        "do_resize",
        "do_center_crop",
        "do_rescale",
        "do_normalize",
        "rescale_factor",
        "do_flip_channel_order",
        "default_to_square",
        "use_square_size",
        "do_reduce_labels",
        "reduce_labels",
    ]
)
"""Settings that are honoured below, or change no pixel (labels are those of
segmentation): images are always made RGB, alpha on white."""


def read_preprocessing(folder: Path) -> dict[str, Any]:
    """The ``image`` entry of a pocket file's ``model`` (docs/format.md).

    Raises:
        CheckpointError: the file is missing or damaged.
        UnsupportedModelError: it has a setting that is not honoured.
    """
    config = _config(folder)
    defaults = _defaults(config)
    unknown = next((key for key, value in config.values.items() if key not in _SILENT and value), None)
    config.refuse(unknown or "", unknown, "this setting is not honoured; prepare the images before, and take it out")
    values = {**defaults, **{key: value for key, value in config.values.items() if value is not None}}
    cropped = _size(config, values.get("crop_size"), False, "crop_size") if values.get("do_center_crop") else None
    resized = None
    if values.get("do_resize", True):
        shorter = bool(defaults.get("shorter")) and not values.get("default_to_square", False)
        resized = _size(config, values["size"], shorter and not values.get("use_square_size"), "size")
    target = cropped or resized
    if target is None or "shortest" in target:
        raise UnsupportedModelError(
            f"{config.path}: 'do_resize' is {values.get('do_resize', True)}, 'size' {values.get('size')!r} and "
            f"'do_center_crop' {bool(cropped)}, so that images have no common size: set 'crop_size' as well"
        )
    mean, std = values["mean_std"] or ([], [])
    plain = values.get("do_normalize", True) is False or values["mean_std"] is None
    scale = config.number("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    return {
        **target,
        "resize": resized,
        "resample": _resampling(config, values["resample"]),
        "crop": cropped is not None,
        "channels": "bgr" if values.get("do_flip_channel_order") else "rgb",
        "scale": scale,
        "mean": [0.0] * 3 if plain else _three(config, "image_mean", mean),
        "std": [1.0] * 3 if plain else _three(config, "image_std", std),
    }


def _config(folder: Path) -> Config:
    path = folder / FILE
    if path.is_file():
        return Config(read_json(path), path)
    whole = folder / PROCESSOR
    values = read_json(whole).get("image_processor") if whole.is_file() else None
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path} is missing, which says how images become pixels; put the model's own beside config.json "
            "(AutoImageProcessor.from_pretrained(…).save_pretrained(folder))"
        )
    return Config(values, whole)


def _defaults(config: Config) -> dict[str, Any]:
    key = "image_processor_type" if config.values.get("image_processor_type") else "feature_extractor_type"
    name = config.text(key, "ViTImageProcessor").replace("FeatureExtractor", "ImageProcessor")
    found = _DEFAULTS.get(name.removesuffix("Fast").removesuffix("Pil"))
    if found is None:
        raise UnsupportedModelError(f"{config.path}: {key!r} is {name!r}; supported are {', '.join(_DEFAULTS)}")
    return found


def _size(config: Config, value: Any, shorter: bool, key: str) -> dict[str, int]:
    """``{"shortest": n}`` or ``{"height": h, "width": w}``."""
    if isinstance(value, int):
        value = {"shortest_edge": value} if shorter else {"height": value, "width": value}
    elif isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    given = {name: n for name, n in value.items() if n is not None} if isinstance(value, dict) else {}
    if set(given) not in ({"shortest_edge"}, {"height", "width"}):
        raise UnsupportedModelError(
            f"{config.path}: {key!r} is {value!r}; supported are height and width, or shortest_edge"
        )
    if not all(type(n) is int and 1 <= n <= 1 << 14 for n in given.values()):
        raise CheckpointError(f"{config.path}: {key!r} is {value!r}; its sizes must be integers in 1…{1 << 14}")
    return (
        {"shortest": given["shortest_edge"]} if len(given) == 1 else {name: given[name] for name in ("height", "width")}
    )


def _resampling(config: Config, number: Any) -> str:
    if type(number) is not int or not 0 <= number < len(RESAMPLING):
        raise CheckpointError(
            f"{config.path}: 'resample' is {number!r}; it must be an integer in 0…{len(RESAMPLING) - 1}"
        )
    return RESAMPLING[number]


def _three(config: Config, key: str, default: list[float]) -> list[float]:
    value = config.values.get(key, default)
    numbers = [value] * 3 if type(value) in (int, float) else value
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(type(n) in (int, float) for n in numbers):
        raise CheckpointError(f"{config.path}: {key!r} is {value!r}; it must be three numbers, red first")
    return [float(n) for n in numbers]
