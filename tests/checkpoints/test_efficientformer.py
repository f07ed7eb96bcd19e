"""EfficientFormer from folders near its definition in torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pocketformer
from helpers.efficientformer import EfficientFormer
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

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
MEAN, STD = (np.array(x, np.float32) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def build(folder: Path, heads: int = 1, side: int = 64, **options: Any) -> EfficientFormer:
    model = EfficientFormer(heads, **options).eval()
    seen = make_convolutions_adversarial(model, (side, side))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.weight"):
                parameter *= 2
            if "attention_biases" in name or "layer_scale" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    if heads:
        classifiers = [part for name, part in model.named_children() if name.endswith("classifier")]
        spread_logits(model, seen, *classifiers, most=8)
    model.save(folder)
    processor = {
        "image_processor_type": "EfficientFormerImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return model


def pixels(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((pictures.astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("heads", "side", "options"),
    [
        (1, 64, {}),
        (2, 96, {"resolution": 3, "hidden_act": "relu", "pool_size": 5}),
        (2, 80, {"resolution": 3, "use_layer_scale": False, "attention_ratio": 1, "downsample_patch_size": 1}
         | {"downsample_pad": 0}),
        (1, 64, {"num_meta3d_blocks": 0, "downsamples": [False, True, True, True], "hidden_sizes": [8, 8, 20, 24]}),
    ],
    ids=str,
)  # fmt: skip
def test_parity(heads: int, side: int, options: dict[str, Any], tmp_path: Path) -> None:
    model = build(tmp_path, heads, side, **options)
    pictures = np.random.default_rng(1).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    with torch.no_grad():
        expected = model(pixels(pictures)).logits.numpy()
    found = load(tmp_path)
    assert isinstance(found, pocketformer.ImageClassifier)
    assert deviation(logits(found, pictures), expected - expected.mean(axis=1, keepdims=True)) < 1
    assert found.classify(pictures[1]) == found.classify(pictures)[1]


def test_features(tmp_path: Path) -> None:
    model = build(tmp_path, 0)
    with torch.no_grad():
        expected = model(pixels(PICTURES)).hidden.numpy()
    found = load(tmp_path)
    assert deviation(found.encode(PICTURES, patches=True), expected.reshape(3, 2, 2, 24)) < 1
    assert deviation(found.encode(PICTURES), expected.mean(axis=1)) < 1


@pytest.mark.parametrize(
    "part",
    [
        "patch_embed.batchnorm_after.running_mean",
        "encoder.intermediate_stages.0.meta4D_layers.blocks.0.layer_scale_1",
        "encoder.intermediate_stages.1.norm.running_var",
        "encoder.last_stage.meta4D_layers.blocks.0.mlp.batchnorm_before.bias",
        "encoder.last_stage.meta3D_layers.blocks.0.layer_scale_1",
        "encoder.last_stage.meta3D_layers.blocks.1.token_mixer.attention_biases",
        "encoder.last_stage.meta3D_layers.blocks.1.layernorm2.bias",
    ],
)
def test_parity_would_notice(part: str, tmp_path: Path) -> None:
    """One row of a tensor, or its second column, changes what comes out by more than the tolerance."""
    build(tmp_path)
    assert_notices(tmp_path, f"efficientformer.{part}", (..., 1), [*PICTURES])


def test_int8_is_near_and_the_same_in_any_batch(tmp_path: Path) -> None:
    build(tmp_path, 0)
    assert_int8_is_near(tmp_path, [*PICTURES])


def test_what_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    assert_refused(
        tmp_path,
        [
            ({"resolution": 7}, UnsupportedModelError, ("resolution", "7", "2 × 2")),
            ({"dim": 32}, UnsupportedModelError, ("dim", "32", "24")),
            ({"downsample_pad": 0}, UnsupportedModelError, ("downsample_pad", "set 1")),
            ({"pool_size": 4}, UnsupportedModelError, ("pool_size", "4")),
            ({"num_meta3d_blocks": 4}, UnsupportedModelError, ("num_meta3d_blocks", "3 blocks")),
            ({"depths": [3, 2]}, CheckpointError, ("depths", "a list of 4 integers")),
        ],
    )
