"""MobileViTv2 from folders near transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

import pocketformer
from helpers.torch_images import (
    assert_int8_is_near,
    assert_notices,
    assert_refused,
    load,
    logits,
    make_convolutions_adversarial,
    spread_logits,
)
from helpers.torch_models import deviation
from pocketformer.errors import CheckpointError, UnsupportedModelError

SIZES: dict[str, Any] = {
    "width_multiplier": 0.1,
    "base_attn_unit_dims": [160, 240, 320],
    "n_attn_blocks": [1, 2, 1],
    "layer_norm_eps": 1e-2,
    "num_labels": 5,
}
PICTURES = [
    np.random.default_rng(i).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for i, (height, width) in enumerate(((71, 70), (77, 130), (64, 64)))
]


def build(
    folder: Path, suffix: str = "ForImageClassification", size: tuple[int, int] = (64, 128), **options: Any
) -> Any:
    config = transformers.MobileViTV2Config(**{**SIZES, **options})
    model = getattr(transformers, f"MobileViTV2{suffix}")(config).eval()
    pixels = make_convolutions_adversarial(model, size)
    with torch.no_grad():  # scores that differ, of keys and values that stay in range
        for name, parameter in model.named_parameters():
            if "qkv_proj.convolution" in name:
                parameter[0] *= 3
    if suffix != "Model":
        spread_logits(model, pixels, model.classifier)
    model.save_pretrained(folder)
    processor = MobileViTImageProcessorPil(
        size={"shortest_edge": max(size)}, crop_size={"height": size[0], "width": size[1]}
    )
    processor.save_pretrained(folder)
    return model, processor


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((64, 64), {}),
        ((64, 128), {"hidden_act": "relu", "ffn_multiplier": 3, "conv_kernel_size": 5, "width_multiplier": 0.17}),
        ((96, 192), {"patch_size": 3, "expand_ratio": 2.5}),
        ((128, 64), {"patch_size": 1}),
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
    model, processor = build(tmp_path, "Model")
    with torch.no_grad():
        expected = model(**processor(PICTURES, return_tensors="pt"))
    found = load(tmp_path)
    assert found.poolings == ("mean",)
    assert deviation(found.encode(PICTURES), expected.pooler_output.numpy()) < 1
    grid = found.encode(PICTURES, patches=True)
    assert deviation(grid, expected.last_hidden_state.numpy().transpose(0, 2, 3, 1)) < 1


@pytest.mark.parametrize(
    ("part", "row"),
    [
        ("encoder.layer.2.transformer.layer.0.layernorm_before.weight", 3),
        ("encoder.layer.3.transformer.layer.1.attention.qkv_proj.convolution.weight", 0),
        ("encoder.layer.3.transformer.layer.1.attention.qkv_proj.convolution.bias", 30),
        ("encoder.layer.3.transformer.layer.0.attention.out_proj.convolution.weight", 3),
        ("encoder.layer.4.transformer.layer.0.ffn.conv1.convolution.bias", 3),
        ("encoder.layer.4.conv_kxk.convolution.weight", 3),
        ("encoder.layer.4.layernorm.bias", 3),
    ],
)
def test_parity_would_notice(part: str, row: int, tmp_path: Path) -> None:
    """One row of a tensor changes what comes out by more than the tolerance."""
    build(tmp_path)
    assert_notices(tmp_path, f"mobilevitv2.{part}", row, PICTURES)


def test_int8_is_near_and_the_same_in_any_batch(tmp_path: Path) -> None:
    build(tmp_path, "Model")
    assert_int8_is_near(tmp_path, PICTURES)


def test_what_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    assert_refused(
        tmp_path,
        [
            ({"output_stride": 16}, UnsupportedModelError, ("output_stride", "16", "dilated")),
            ({"base_attn_unit_dims": [24, 32]}, CheckpointError, ("base_attn_unit_dims", "a list of 3 integers")),
            ({"patch_size": 3}, UnsupportedModelError, ("patch_size", "64 × 128", "multiples of 96")),
            ({"architectures": ["MobileViTV2ForSemanticSegmentation"]}, UnsupportedModelError, ("Segmentation",)),
        ],
    )
