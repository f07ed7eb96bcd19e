"""MobileViT from folders near transformers', at sizes that patches divide and others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

import pocketformer
from helpers.checkpoints import refused
from helpers.torch_images import logits, make_convolutions_adversarial, spread_logits
from helpers.torch_models import deviation
from pocketformer.errors import CheckpointError, UnsupportedModelError

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_dropout_prob", "classifier_dropout_prob"), 0.0),
    "hidden_sizes": [24, 32, 40],
    "neck_hidden_sizes": [8, 8, 12, 20, 24, 28, 36],
    "layer_norm_eps": 1e-2,
    "num_labels": 5,
}
PICTURES = [
    np.random.default_rng(i).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for i, (height, width) in enumerate(((61, 70), (77, 90), (64, 64)))
]


def build(
    folder: Path, suffix: str = "ForImageClassification", size: tuple[int, int] = (64, 64), **options: Any
) -> Any:
    config = transformers.MobileViTConfig(**{**SIZES, **options})
    model = getattr(transformers, f"MobileViT{suffix}")(config).eval()
    pixels = make_convolutions_adversarial(model, size)
    if suffix != "Model":
        spread_logits(model, pixels, model.classifier)
    model.save_pretrained(folder)
    processor = MobileViTImageProcessorPil(
        size={"shortest_edge": max(size)}, crop_size={"height": size[0], "width": size[1]}
    )
    processor.save_pretrained(folder)
    return model, processor


def load(folder: Path, weights: str = "fp32", **options: Any) -> Any:
    pocket = folder / f"{weights}.pocket"
    pocketformer.compress(folder, pocket, weights=weights)
    return pocketformer.load(pocket, **options)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((64, 64), {}),
        ((64, 96), {"num_attention_heads": 2, "mlp_ratio": 3.0, "qkv_bias": False}),
        ((37, 53), {"hidden_act": "relu", "expand_ratio": 2.5}),
        ((80, 48), {"patch_size": 3, "conv_kernel_size": 5}),
    ],
    ids=str,
)
def test_parity(size: tuple[int, int], options: dict[str, Any], tmp_path: Path) -> None:
    model, processor = build(tmp_path, size=size, **options)
    with torch.no_grad():
        expected = model(**processor(PICTURES, return_tensors="pt")).logits.numpy()
    found = load(tmp_path)
    assert isinstance(found, pocketformer.ImageClassifier)
    assert deviation(logits(found, PICTURES), expected - expected.mean(axis=1, keepdims=True)) < 1
    assert found.classify(PICTURES[1]) == found.classify(PICTURES)[1]


def test_features(tmp_path: Path) -> None:
    model, processor = build(tmp_path, "Model", (96, 64))
    with torch.no_grad():
        expected = model(**processor(PICTURES, return_tensors="pt"))
    found = load(tmp_path)
    assert found.poolings == ("mean",)
    assert deviation(found.encode(PICTURES), expected.pooler_output.numpy()) < 1
    grid = found.encode(PICTURES, patches=True)
    assert grid.shape == (3, 3, 2, 36)
    assert deviation(grid, expected.last_hidden_state.numpy().transpose(0, 2, 3, 1)) < 1


@pytest.mark.parametrize(
    "part",
    [
        "conv_stem.normalization.running_mean",
        "encoder.layer.0.layer.0.conv_3x3.normalization.running_var",
        "encoder.layer.1.layer.2.conv_3x3.convolution.weight",
        "encoder.layer.2.transformer.layer.1.attention.attention.key.weight",
        "encoder.layer.3.conv_projection.normalization.bias",
        "encoder.layer.4.fusion.convolution.weight",
        "encoder.layer.4.layernorm.weight",
    ],
)
def test_parity_would_notice(part: str, tmp_path: Path) -> None:
    """One row of a tensor changes what comes out by more than the tolerance."""
    build(tmp_path)
    results = []
    for change in (0.0, 2.0):
        tensors = load_file(tmp_path / "model.safetensors")
        tensors[f"mobilevit.{part}"][3] += change
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        results.append(logits(load(tmp_path), PICTURES))
    assert deviation(results[0], results[1]) > 10


def test_int8_is_near_and_the_same_in_any_batch(tmp_path: Path) -> None:
    build(tmp_path, "Model")
    exact = load(tmp_path).encode(PICTURES, normalize=True)
    model = load(tmp_path, "int8", threads=1)
    rounded = model.encode(PICTURES, normalize=True)
    assert (exact * rounded).sum(axis=1).min() > 0.99
    assert model.encode(PICTURES * 3, normalize=True).tobytes() == rounded.tobytes() * 3
    two = pocketformer.load(tmp_path / "int8.pocket", threads=2)
    assert two.encode(PICTURES, normalize=True).tobytes() == rounded.tobytes()


def test_what_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for change, error, words in [
        ({"output_stride": 16}, UnsupportedModelError, ("output_stride", "16", "dilated")),
        ({"conv_kernel_size": 4}, UnsupportedModelError, ("conv_kernel_size", "4")),
        ({"num_channels": 4}, UnsupportedModelError, ("num_channels",)),
        ({"hidden_sizes": [24, 32]}, CheckpointError, ("hidden_sizes", "a list of 3 integers")),
        ({"architectures": ["MobileViTForSemanticSegmentation"]}, UnsupportedModelError, ("ForSemanticSegmentation",)),
    ]:
        path.write_text(json.dumps({**values, **change}), encoding="utf-8")
        refused(tmp_path, error, *words)
