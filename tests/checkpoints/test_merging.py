"""Token merging of models from folders, near ToMe written in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import pocketformer
from helpers.torch_models import deviation, make_adversarial
from pocketformer.cli import main
from pocketformer.errors import UnsupportedModelError

HEADS, LAYERS = 4, 3
SIZES: dict[str, Any] = {
    "hidden_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 40,
    "patch_size": 8,
    "layer_norm_eps": 1e-2,
    "num_labels": 5,
}
NAMES = {
    "ViT": ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"),
    "Dinov2WithRegisters": ("norm1", "norm2", "mlp.fc1", "mlp.fc2"),
}
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)


def build(kind: str, folder: Path) -> torch.nn.Module:
    prefix = kind.partition("For")[0].removesuffix("Model")
    config = getattr(transformers, f"{prefix}Config")(**SIZES)
    config._attn_implementation = "eager"
    model: torch.nn.Module = getattr(transformers, kind)(config).eval()
    make_adversarial(model, 3)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 40, "width": 40}).save_pretrained(folder)
    return model


def matching(keys: torch.Tensor, gone: int, kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of tokens [n, head_dim]: even ones that stay, those that go, and the odd ones into which they go."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    scores = unit[::2] @ unit[1::2].T
    scores[: (kept + 1) // 2] = -torch.inf
    scores[:, : kept // 2] = -torch.inf
    best, target = scores.max(dim=-1)
    order = best.argsort(descending=True, stable=True)
    return order[gone:].sort().values, order[:gone], target[order[:gone]]


def merged(x: torch.Tensor, found: tuple[torch.Tensor, ...], kept: int) -> torch.Tensor:
    """Sums of rows: the kept ones in their order, then even ones that stay, then odd ones."""
    stay, gone, target = found
    odd = x[1::2].index_add(0, target, x[::2][gone])
    front = torch.stack([x[i] for i in range(kept)])
    return torch.cat([front, x[::2][stay[(kept + 1) // 2 :]], odd[kept // 2 :]])


@torch.no_grad()
def merging(kind: str, model: torch.nn.Module, folder: Path, x: torch.Tensor, count: int, kept: int) -> torch.Tensor:
    """The last class token of one image whose embedded tokens are ``x`` [n, width]."""
    weights = {
        name.partition("encoder.")[2] or name.removeprefix("vit."): w
        for name, w in load_file(folder / "model.safetensors").items()
    }
    before, after, up, down = NAMES[kind]
    size = torch.ones(len(x), 1)
    for i in range(LAYERS):

        def at(name: str, i: int = i) -> torch.Tensor:
            return weights[f"layer.{i}.{name}"]

        def linear(h: torch.Tensor, name: str) -> torch.Tensor:
            return h @ at(f"{name}.weight").T + at(f"{name}.bias")

        def norm(h: torch.Tensor, name: str) -> torch.Tensor:
            return torch.nn.functional.layer_norm(h, h.shape[-1:], at(f"{name}.weight"), at(f"{name}.bias"), 1e-2)

        scaled = kind != "ViT"
        h = norm(x, before)
        q, k, v = (
            linear(h, f"attention.attention.{part}").reshape(len(x), HEADS, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + size.log()[:, 0]
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)
        mixed = linear(mixed, "attention.output.dense")
        x = x + (mixed * at("layer_scale1.lambda1") if scaled else mixed)
        gone = min(count, (len(x) - kept) // 2)
        if gone:
            found = matching(k.mean(0), gone, kept)
            x, size = merged(x * size, found, kept), merged(size, found, kept)
            x = x / size
        h = linear(torch.nn.functional.gelu(linear(norm(x, after), up)), down)
        x = x + (h * at("layer_scale2.lambda1") if scaled else h)
    last = {part: weights[f"layernorm.{part}"] for part in ("weight", "bias")}
    x = torch.nn.functional.layer_norm(x, x.shape[-1:], last["weight"], last["bias"], 1e-2)
    return x[0]


@pytest.mark.parametrize("count", [2, 7, 50])
@pytest.mark.parametrize("kind", NAMES)
def test_parity_with_torch(kind: str, count: int, tmp_path: Path) -> None:
    model = build(f"{kind}ForMaskedImageModeling" if kind == "ViT" else f"{kind}Model", tmp_path)
    base: Any = getattr(model, "vit", model)
    pocketformer.compress(tmp_path, tmp_path / "merged.pocket", weights="fp32", merge=count)
    found: Any = pocketformer.load(tmp_path / "merged.pocket")
    with torch.no_grad():
        given = ViTImageProcessorPil(size={"height": 40, "width": 40})(PICTURES, return_tensors="pt")["pixel_values"]
        embedded = base.embeddings(given)
    kept = 1 if kind == "ViT" else 5
    expected = torch.stack([merging(kind, model, tmp_path, x, count, kept) for x in embedded]).numpy()
    assert found.poolings == ("cls",)
    assert deviation(found.encode(PICTURES), expected) < 1
    assert found.encode(PICTURES[1]).tobytes() == found.encode(PICTURES)[1].tobytes()
    for options in ({"patches": True}, {"pooling": "mean"}):
        with pytest.raises(ValueError, match=r"compress the checkpoint without merge|this model gives cls"):
            found.encode(PICTURES, **options)
    pocketformer.compress(tmp_path, tmp_path / "whole.pocket", weights="fp32")
    whole = pocketformer.ImageEmbedder.load(tmp_path / "whole.pocket").encode(PICTURES)
    assert deviation(whole, expected) > 10  # it is merged


def test_classifiers_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("ViTForImageClassification", tmp_path)
    pocket = tmp_path / "merged.pocket"
    assert main(["compress", str(tmp_path), "-o", str(pocket), "--merge", "4"]) == 0
    model = pocketformer.ImageClassifier.load(pocket)
    assert len(model.classify(PICTURES, top_k=2)[1]) == 2
    for arguments, message in (
        (["--merge", "0"], "merge is 0; it must be an integer of at least 1"),
        (["--merge", "2", "--budget", "1MB"], "--merge was given beside a limit"),
    ):
        assert main(["compress", str(tmp_path), "-o", str(pocket), *arguments]) == 1
        assert message in capsys.readouterr().err
    build("Dinov2ForImageClassification", tmp_path)
    with pytest.raises(UnsupportedModelError, match="needs all of its patches, their mean; leave it out"):
        pocketformer.compress(tmp_path, pocket, merge=4)
