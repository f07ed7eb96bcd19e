"""BEiT from a folder, near transformers: relative positions of each layer or of all, LayerScale, either pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling, BeitModel
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil

from helpers.torch_images import assert_int8_is_near, assert_notices, assert_refused, load, logits, spread_logits
from helpers.torch_models import deviation, make_adversarial
from pocketformer.errors import CheckpointError, UnsupportedModelError

SIZES: dict[str, Any] = {
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "image_size": 40,
    "patch_size": 8,
    "layer_norm_eps": 1e-2,
    "num_labels": 5,
}
PICTURES = list(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8))
OWN = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True}
PLAIN = {"use_absolute_position_embeddings": True, "use_mean_pooling": False, "layer_scale_init_value": 0.0}
TABLE = "relative_position_bias.relative_position_bias_table"


def build(kind: type[Any], folder: Path, options: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    model = kind(BeitConfig(**SIZES, **options)).eval()
    make_adversarial(model, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_position" in name:
                parameter.normal_(0, 1.5)
            elif ".lambda_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5 + 1)
    processor = BeitImageProcessorPil(size={"height": 40, "width": 40})
    pixels = processor(PICTURES, return_tensors="pt")["pixel_values"]
    if kind is BeitForImageClassification:
        spread_logits(model, pixels, model.classifier, most=3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, pixels


@pytest.mark.parametrize(
    "options",
    [OWN, SHARED, {**OWN, **SHARED}, PLAIN, {**OWN, "use_mean_pooling": False}, {**SHARED, **PLAIN}],
    ids=["own", "shared", "both", "plain", "class token", "shared and plain"],
)
def test_classifiers(options: dict[str, Any], tmp_path: Path) -> None:
    model, pixels = build(BeitForImageClassification, tmp_path, options)
    with torch.no_grad():
        expected = model(pixels).logits.numpy()
    expected -= expected.mean(axis=1, keepdims=True)
    assert np.std(expected) > 0.5
    assert deviation(logits(load(tmp_path), PICTURES), expected) < 1


@pytest.mark.parametrize("kind", [BeitModel, BeitForMaskedImageModeling])
@pytest.mark.parametrize("mean", [True, False])
def test_embedders(kind: type[Any], mean: bool, tmp_path: Path) -> None:
    """A pooler of the mean is the output; else the hidden states are, and what predicts hidden patches is left out."""
    model, pixels = build(kind, tmp_path, {**OWN, "use_mean_pooling": mean})
    with torch.no_grad():
        found = getattr(model, "beit", model)(pixels)
    embedder = load(tmp_path)
    pooler = kind is BeitModel and mean
    assert embedder.poolings == (("pooler",) if pooler else ("cls", "mean"))
    expected = found.pooler_output if pooler else found.last_hidden_state[:, 0]
    assert deviation(embedder.encode(PICTURES), expected.numpy()) < 1
    if not pooler:
        patches = found.last_hidden_state[:, 1:].reshape(3, 5, 5, 40)
        assert deviation(embedder.encode(PICTURES, patches=True), patches.numpy()) < 1
    assert_int8_is_near(tmp_path, PICTURES)


@pytest.mark.parametrize(
    ("tensor", "place", "mean"),
    [
        (f"beit.encoder.layer.1.attention.attention.{TABLE}", np.s_[40, :], True),  # patches as far as (0, 0)
        (f"beit.encoder.layer.2.attention.attention.{TABLE}", np.s_[81, :], False),  # the class token sees patches
        (f"beit.encoder.layer.1.attention.attention.{TABLE}", np.s_[82, :2], True),  # and is seen
        ("beit.encoder.layer.0.lambda_1", np.s_[3], True),
        ("beit.encoder.layer.2.lambda_2", np.s_[3], True),
        ("beit.encoder.layer.0.attention.attention.value.bias", np.s_[7], True),
        ("beit.layernorm.bias", np.s_[0], False),
    ],
)
def test_mutations(tensor: str, place: Any, mean: bool, tmp_path: Path) -> None:
    build(BeitForImageClassification, tmp_path, {**OWN, "use_mean_pooling": mean})
    assert_notices(tmp_path, tensor, place, PICTURES)


def test_what_is_refused(tmp_path: Path) -> None:
    build(BeitForImageClassification, tmp_path, OWN)
    assert_refused(
        tmp_path,
        [
            (
                {"architectures": ["BeitForSemanticSegmentation"]},
                UnsupportedModelError,
                ("BeitForSemanticSegmentation",),
            ),
            ({"image_size": 48}, UnsupportedModelError, ("'image_size' is 48", "40 × 40")),
            ({"image_size": [40, 40]}, CheckpointError, ("'image_size' is [40, 40]",)),
            ({"head_dim": 8}, UnsupportedModelError, ("'head_dim' is 8",)),
            ({"use_shared_relative_position_bias": True}, CheckpointError, (TABLE,)),
        ],
    )
