"""MobileViT from folders near transformers', at sizes that patches divide and others."""

from __future__ import annotations

import json
import subprocess
import sys
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
from pocketformer.compression import QuantizeOptions
from pocketformer.compression.limits import BESIDE
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
    assert_notices(tmp_path, f"mobilevit.{part}", 3, PICTURES)


def test_int8_is_near_and_the_same_in_any_batch(tmp_path: Path) -> None:
    build(tmp_path, "Model")
    assert_int8_is_near(tmp_path, PICTURES)


def test_what_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    assert_refused(
        tmp_path,
        [
            ({"output_stride": 16}, UnsupportedModelError, ("output_stride", "16", "dilated")),
            ({"conv_kernel_size": 4}, UnsupportedModelError, ("conv_kernel_size", "4")),
            ({"num_channels": 4}, UnsupportedModelError, ("num_channels",)),
            ({"hidden_sizes": [24, 32]}, CheckpointError, ("hidden_sizes", "a list of 3 integers")),
            (
                {"architectures": ["MobileViTForSemanticSegmentation"]},
                UnsupportedModelError,
                ("ForSemanticSegmentation",),
            ),
        ],
    )


MEMORY = """
import json, sys
import numpy as np
from pocketformer.engine import Engine
from pocketformer.perf.boards import BOARDS
from pocketformer.perf.predict import predict

def resident(kind):
    with open("/proc/self/status") as status:
        return int(status.read().partition(kind + ":")[2].split()[0]) * 1024

engine = Engine(sys.argv[1], 1)
pixels = np.ones((256 * 256, 3), np.float32)
before = resident("RssAnon"), resident("VmRSS")
engine.run_inputs({"pixels": pixels})
grown, peak = resident("RssAnon") - before[0], resident("VmHWM") - before[1]
memory = predict(engine, BOARDS["pi4"], [256 * 256], 1)["memory"]
print(json.dumps([grown, peak, memory["working"], memory["file"]]))
"""


@pytest.mark.slow
def test_memory_of_the_small_model_is_what_was_planned(tmp_path: Path) -> None:
    config = transformers.MobileViTConfig(num_labels=1000)  # MobileViT-S, 256 × 256
    transformers.MobileViTForImageClassification(config).save_pretrained(tmp_path)
    MobileViTImageProcessorPil(size={"shortest_edge": 256}).save_pretrained(tmp_path)
    pocket = tmp_path / "small.pocket"
    pocketformer.compress(tmp_path, pocket, weights="int8", options=QuantizeOptions(random_tokens=0))
    done = subprocess.run([sys.executable, "-c", MEMORY, str(pocket)], capture_output=True, text=True, check=True)
    grown, peak, working, file = json.loads(done.stdout)
    print(grown, peak, working, file)
    assert 0.5 * working < grown < working + BESIDE
    assert peak < working + file + BESIDE
