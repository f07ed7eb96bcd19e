"""Vision transformers from a folder: logits near transformers', on images in every form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil as ViTImageProcessor

import pocketformer
from helpers.torch_images import tiny_vit
from pocketformer.errors import CheckpointError, UnsupportedModelError
from pocketformer.graph import Array
from pocketformer.sources.huggingface import load_checkpoint

SIZE, PATCH = 32, 8


@pytest.fixture(scope="module", params=[True, False], ids=["qkv bias", "no qkv bias"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vit(tmp_path_factory.mktemp("vit"), SIZE, PATCH, request.param)


def images(count: int) -> Array:
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)


def expected(folder: Path, pictures: Array) -> Array:
    """transformers' logits from its own processor."""
    processor, model = (c.from_pretrained(folder) for c in (ViTImageProcessor, ViTForImageClassification))
    with torch.no_grad():
        given = processor(list(pictures), return_tensors="pt", input_data_format="channels_last")
        return np.asarray(model.eval()(**given).logits)


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8"])
def test_logits(folder: Path, weights: str, tmp_path: Path) -> None:
    pocketformer.compress(folder, tmp_path / "vit.pocket", weights=weights)
    model: Any = pocketformer.load(tmp_path / "vit.pocket")
    pictures = images(3)
    logits = expected(folder, pictures)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found = model.classify(pictures)
    tolerance = {"fp32": 1e-4, "fp16": 3e-3, "int8": 0.1}[weights]
    for row, labels in zip(probabilities, found, strict=True):
        scores = {label: score for label, score in labels}
        assert [scores[name] for name in ("cat", "dog", "boat")] == pytest.approx(list(row), abs=tolerance)
    assert model.classify(pictures[0], top_k=1) == found[0][:1]
    assert model(list(pictures)) == found
    assert len(expected(folder, pictures)) == 3


def test_a_shifted_position_is_noticed(folder: Path, tmp_path: Path) -> None:
    """The premise of the parity test: what an image says depends on where its parts stand."""
    pictures = images(2)
    moved = np.roll(pictures, PATCH, axis=2)
    assert np.abs(expected(folder, pictures) - expected(folder, moved)).max() > 1e-2


def test_float_pixels_are_taken_as_they_are(folder: Path, tmp_path: Path) -> None:
    pocketformer.compress(folder, tmp_path / "vit.pocket", weights="fp32")
    model: Any = pocketformer.load(tmp_path / "vit.pocket")
    picture = images(1)[0]
    settings = model.info()["image"]
    floats = (picture.astype(np.float32) * np.float32(settings["scale"]) - np.float32(settings["mean"])) / np.float32(
        settings["std"]
    )
    scores = {label: score for label, score in model.classify(picture)}
    assert {label: score for label, score in model.classify(floats.astype(np.float32))} == pytest.approx(scores)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((SIZE, SIZE, 3)), TypeError, r"images\[0\] is float64; pass a numpy array of uint8 or float32"),
        (np.zeros((SIZE, SIZE + 1, 3), np.float32), ValueError, r"\[32, 33, 3\]; it must be \[32, 32, 3\] and normal"),
        (np.full((SIZE, SIZE, 3), np.nan, np.float32), ValueError, r"images\[0\] holds nan"),
        ([np.zeros((SIZE, SIZE, 3), np.uint8), 3], TypeError, r"images\[1\] is int"),
        (["photo.jpg"], FileNotFoundError, "photo.jpg"),
    ],
)
def test_wrong_images(folder: Path, tmp_path: Path, image: Any, error: type[Exception], message: str) -> None:
    pocketformer.compress(folder, tmp_path / "vit.pocket", weights="fp32")
    model: Any = pocketformer.load(tmp_path / "vit.pocket")
    with pytest.raises(error, match=message):
        model.classify(image)
    with pytest.raises(ValueError, match="top_k is 0"):
        model.classify(images(1)[0], top_k=0)
    assert model.classify([]) == []


def test_other_heads_and_sizes_are_refused_by_name(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json is missing"):
        load_checkpoint(tmp_path)
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    for old, new, message in (
        ("ViTForImageClassification", "ViTForPoses", r"ViTForPoses.*supported of its family"),
        ('"image_size": 16', '"image_size": 24', "'image_size' is 24, no multiple"),
        ('"image_size": 16', '"image_size": 16', "'image_size' is 16, but the preprocessing makes images of 24 × 24"),
        ('"num_channels": 3', '"num_channels": 1', "'num_channels' is 1; images have red, green and blue"),
        ('"patch_size": 16', '"patch_size": 32', "'patch_size' is 32, larger than 'image_size' 16"),
    ):
        (tmp_path / "config.json").write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises((UnsupportedModelError, CheckpointError), match=message):
            load_checkpoint(tmp_path)
