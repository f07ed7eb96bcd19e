"""Encoders of images from folders: ViT, DeiT and DINOv2 near transformers', at sizes that were trained and others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

import pocketformer
from helpers.checkpoints import refused
from helpers.torch_models import deviation, make_adversarial
from pocketformer.cli import main
from pocketformer.compression import compress_checkpoint
from pocketformer.errors import PocketFileError, UnsupportedModelError
from pocketformer.sources.huggingface import load_checkpoint

SIZES: dict[str, Any] = {
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 40,
    "patch_size": 8,
    "layer_norm_eps": 1e-2,
    "num_labels": 5,
}
FIXED: dict[str, Any] = {**SIZES, "intermediate_size": 72}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViT", "Model", FIXED),
    "vit masked": ("ViT", "ForMaskedImageModeling", {**FIXED, "encoder_stride": 8, "hidden_act": "gelu_new"}),
    "deit": ("DeiT", "Model", FIXED),
    "deit labels": ("DeiT", "ForImageClassification", FIXED),
    "deit teacher": ("DeiT", "ForImageClassificationWithTeacher", {**FIXED, "qkv_bias": False}),
    "dinov2": ("Dinov2", "Model", SIZES),
    "dinov2 labels": ("Dinov2", "ForImageClassification", {**SIZES, "mlp_ratio": 2}),
    "dinov2 gated": ("Dinov2", "Model", {**SIZES, "use_swiglu_ffn": True}),
    "registers": ("Dinov2WithRegisters", "Model", {**SIZES, "num_register_tokens": 3}),
    "registers labels": ("Dinov2WithRegisters", "ForImageClassification", SIZES),
}
PICTURES = [
    np.random.default_rng(i).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for i, (height, width) in enumerate(((61, 50), (47, 90), (40, 44)))
]


def build(name: str, folder: Path, size: tuple[int, int]) -> tuple[torch.nn.Module, Any]:
    prefix, suffix, options = CASES[name]
    config = getattr(transformers, f"{prefix}Config")(**options)
    config._attn_implementation = "eager"
    model = getattr(transformers, prefix + suffix)(config).eval()
    make_adversarial(model, 3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lambda1" in key:
                parameter.normal_(generator=torch.Generator().manual_seed(len(key)))
    model.save_pretrained(folder)
    processor = BitImageProcessorPil(
        size={"shortest_edge": 52}, crop_size={"height": size[0], "width": size[1]}, image_std=[0.2, 0.3, 0.25]
    )
    processor.save_pretrained(folder)
    return model, processor


def logarithms(found: Any) -> np.ndarray:
    """The logits of classified images up to a constant, in the order of the labels."""
    scores = np.array([[dict(labels)[f"LABEL_{i}"] for i in range(5)] for labels in found])
    return np.log(scores) - np.log(scores).mean(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, (40, 40)) for name in CASES]
    + [(name, size) for name in ("dinov2", "registers") for size in ((56, 56), (24, 48), (27, 37))],
    ids=str,
)
def test_parity(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model, processor = build(name, tmp_path, size)
    pocketformer.compress(tmp_path, tmp_path / "fp32.pocket", weights="fp32")
    found: Any = pocketformer.load(tmp_path / "fp32.pocket")
    with torch.no_grad():
        given = processor(PICTURES, return_tensors="pt")
        expected = model(**given, output_hidden_states=True)
    if isinstance(found, pocketformer.ImageClassifier):
        logits = expected.logits.numpy()
        scores = found.classify(PICTURES)
        assert deviation(logarithms(scores), logits - logits.mean(axis=1, keepdims=True)) < 1
        assert found.classify(PICTURES[1]) == scores[1]
        return
    assert isinstance(found, pocketformer.ImageEmbedder)
    if name in ("vit", "deit"):
        assert found.poolings == ("pooler",)
        assert deviation(found.encode(PICTURES), expected.pooler_output.numpy()) < 1
        with pytest.raises(ValueError, match="patches is True, but this model's file ends in a pooler"):
            found.encode(PICTURES, patches=True)
        return
    assert found.poolings == ("cls", "mean")
    if name == "vit masked":
        hidden = getattr(model, model.base_model_prefix)(**given).last_hidden_state.detach().numpy()
    else:
        hidden = expected.last_hidden_state.numpy()
    first = {"registers": 4}.get(name, 1)
    down, across = size[0] // 8, size[1] // 8
    assert deviation(found.encode(PICTURES), hidden[:, 0]) < 1
    assert deviation(found.encode(PICTURES, pooling="mean"), hidden[:, first:].mean(axis=1)) < 1
    grid = found.encode(PICTURES, patches=True)
    assert deviation(grid, hidden[:, first:].reshape(3, down, across, -1)) < 1
    assert found.encode(iter(PICTURES[:2]), patches=True).tobytes() == grid[:2].tobytes()
    assert found.encode(PICTURES[2]).tobytes() == found.encode(PICTURES)[2].tobytes()
    unit = found.encode(PICTURES, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert found.encode([]).shape == (0, 40)
    with pytest.raises(ValueError, match="pooling is 'pooler'; this model gives cls, mean"):
        found.encode(PICTURES, pooling="pooler")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("dinov2", "encoder.layer.1.layer_scale1.lambda1"),
        ("dinov2", "encoder.layer.0.layer_scale2.lambda1"),
        ("dinov2 gated", "encoder.layer.1.layer_scale2.lambda1"),
        ("dinov2 gated", "encoder.layer.0.mlp.weights_in.bias"),
        ("registers", "embeddings.register_tokens"),
        ("dinov2", "embeddings.position_embeddings"),
        ("deit teacher", "distillation_classifier.weight"),
        ("deit teacher", "deit.embeddings.distillation_token"),
    ],
)
def test_parity_would_notice(name: str, part: str, tmp_path: Path) -> None:
    """One entry of a small tensor changes what comes out by more than the tolerance."""
    from safetensors.numpy import load_file, save_file

    build(name, tmp_path, (40, 40))
    results = []
    for change in (0.0, 2.0):
        tensors = load_file(tmp_path / "model.safetensors")
        tensors[part].reshape(-1)[3] += change
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        pocketformer.compress(tmp_path, tmp_path / "fp32.pocket", weights="fp32")
        model: Any = pocketformer.load(tmp_path / "fp32.pocket")
        classifies = isinstance(model, pocketformer.ImageClassifier)
        results.append(logarithms(model.classify(PICTURES)) if classifies else model.encode(PICTURES))
    assert deviation(results[0], results[1]) > 10


def test_int8_is_near_and_the_same_in_any_batch(tmp_path: Path) -> None:
    build("dinov2", tmp_path, (40, 40))
    models: list[Any] = []
    for weights in ("fp32", "int8"):
        pocketformer.compress(tmp_path, tmp_path / f"{weights}.pocket", weights=weights)
        models.append(pocketformer.load(tmp_path / f"{weights}.pocket", threads=1))
    exact, rounded = (model.encode(PICTURES, normalize=True) for model in models)
    assert (exact * rounded).sum(axis=1).min() > 0.97
    many = models[1].encode(PICTURES * 9, normalize=True)
    assert many.tobytes() == rounded.tobytes() * 9
    assert (
        pocketformer.load(tmp_path / "int8.pocket", threads=2).encode(PICTURES[0]).tobytes()
        == models[1].encode(PICTURES[0]).tobytes()
    )


def test_only_a_few_images_are_in_memory(tmp_path: Path) -> None:
    build("dinov2", tmp_path, (40, 40))
    pocketformer.compress(tmp_path, tmp_path / "fp32.pocket", weights="fp32")
    model: Any = pocketformer.load(tmp_path / "fp32.pocket")
    alive, most = 0, 0

    class Frame(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def frames() -> Any:
        nonlocal alive, most
        for _ in range(200):
            frame = np.zeros((40, 40, 3), np.uint8).view(Frame)
            alive += 1
            most = max(most, alive)
            yield frame
            del frame

    assert len(model.encode(frames())) == 200
    assert most < 40


def test_a_methods_name_for_another_model(tmp_path: Path) -> None:
    build("dinov2", tmp_path, (40, 40))
    pocketformer.compress(tmp_path, tmp_path / "fp32.pocket", weights="fp32")
    model: Any = pocketformer.load(tmp_path / "fp32.pocket")
    with pytest.raises(TypeError, match=r"takes images, not token ids; use Model\.encode"):
        model.run([[1, 2, 3]])
    with pytest.raises(TypeError, match="is a model for the task 'embed_image', not 'classify'"):
        model.classify(PICTURES)
    with pytest.raises(TypeError, match="use ImageEmbedder"):
        pocketformer.ImageClassifier.load(tmp_path / "fp32.pocket")
    assert model.image_size == (40, 40)


def test_what_is_refused(tmp_path: Path) -> None:
    build("dinov2", tmp_path, (40, 40))
    path = tmp_path / "config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("Dinov2Model", "Dinov2Backbone"), encoding="utf-8")
    refused(tmp_path, UnsupportedModelError, "Dinov2Backbone", "Dinov2ForImageClassification")


def test_the_command_line_takes_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("dinov2", tmp_path, (40, 40))
    pocket, photos = tmp_path / "dinov2.pocket", tmp_path / "photos"
    pocketformer.compress(tmp_path, pocket, weights="fp32")
    photos.mkdir()
    for i, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(photos / f"{i}.png")
    model: Any = pocketformer.load(pocket)
    expected = model.encode(PICTURES)

    def run(*arguments: object) -> str:
        code = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert code == 0, output.err
        return output.out

    assert "float32 [3, 40]" in run("encode", pocket, photos, "-o", tmp_path / "features.npy")
    assert np.load(tmp_path / "features.npy").tobytes() == expected.tobytes()
    found = json.loads(run("run", pocket, photos / "1.png", "--json"))
    assert found["results"][0]["image"] == str(photos / "1.png")
    np.testing.assert_array_equal(np.float32(found["results"][0]["embedding"]), expected[1])
    assert "1.png" in run("encode", pocket, photos / "1.png")
    assert "40 × 40 pixels" in run("info", pocket)
    assert main(["encode", str(pocket), str(photos), "--prompt", "query"]) == 1
    assert "leave it out" in capsys.readouterr().err
    assert main(["bench", str(pocket)]) == 1
    assert "takes no texts (task 'embed_image')" in capsys.readouterr().err
    assert "Raspberry Pi 5" in run("predict", pocket, "--board", "pi5")
    build("dinov2 labels", tmp_path, (40, 40))
    pocketformer.compress(tmp_path, pocket, weights="fp32")
    assert "LABEL_" in run("run", pocket, photos)
    results = json.loads(run("run", pocket, photos, "--json", "--top-k", "2"))["results"]
    assert [len(result["labels"]) for result in results] == [2, 2, 2]


def test_the_example_finds_what_does_not_belong(tmp_path: Path) -> None:
    build("dinov2", tmp_path, (56, 56))
    pocketformer.compress(tmp_path, tmp_path / "dinov2.pocket", weights="fp32")
    rng = np.random.default_rng(0)
    plain = np.broadcast_to(np.linspace(60, 200, 56)[:, None, None], (56, 56, 3))
    (tmp_path / "good").mkdir()
    for name in ("good/a.png", "good/b.png", "fine.png", "scratched.png"):
        picture = (plain + rng.normal(0, 2, plain.shape)).clip(0, 255).astype(np.uint8)
        if name == "scratched.png":
            picture[16:24, 32:40] = rng.integers(0, 256, (8, 8, 3))
        Image.fromarray(picture).resize((52, 52)).save(tmp_path / name)
    example = Path(__file__).parents[2] / "examples" / "defect_check.py"
    names = [str(tmp_path / name) for name in ("dinov2.pocket", "good", "fine.png", "scratched.png")]
    done = subprocess.run([sys.executable, "-W", "error", example, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fine, scratched = (float(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines())
    assert scratched > 2 * fine


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("height", 0, "'height' is 0; it must be an integer in 1…16384"),
        ("resize", {"shortest": 1 << 20}, "'resize' is an object of 1; it must be null, an object with 'shortest'"),
        ("resize", {"height": 8}, "'resize' is an object of 1"),
        ("resample", "sharp", "'resample' is 'sharp'; it must be one of nearest, lanczos"),
        ("crop", 1, "'crop' is 1; it must be true or false"),
        ("std", [1.0, 0.0, 1.0], "'std' is a list of 3; it must be a list of three numbers that are not 0"),
        ("mean", [1.0], "'mean' is a list of 1; it must be a list of three numbers"),
        ("gamma", 2.2, "field 'gamma' is unknown"),
        ("channels", None, "field 'channels' is missing"),
    ],
)
def test_a_files_preprocessing_is_checked(key: str, value: Any, message: str, tmp_path: Path) -> None:
    build("dinov2", tmp_path, (40, 40))
    loaded = load_checkpoint(tmp_path)
    image = {**loaded.model["image"], key: value}
    if value is None:
        del image[key]
    broken = replace(loaded, model={**loaded.model, "image": image})
    with pytest.raises(PocketFileError, match=re.escape(message)):
        compress_checkpoint(broken, tmp_path / "broken.pocket", "fp32")
    assert not (tmp_path / "broken.pocket").exists()
