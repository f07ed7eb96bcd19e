"""Models of images in torch, made so that what is wrong shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import pocketformer
from helpers.checkpoints import refused
from helpers.torch_models import deviation, make_adversarial

Pictures = list[np.ndarray]


def tiny_vit(folder: Path, size: int = 32, patch: int = 8, qkv_bias: bool = True) -> Path:
    """A classifier of cat, dog and boat, whose attention is far from uniform, every norm and bias random."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=72,
        image_size=size,
        patch_size=patch,
        qkv_bias=qkv_bias,
        id2label=dict(enumerate(["cat", "dog", "boat"])),
        label2id={"cat": 0, "dog": 1, "boat": 2},
    )
    model = ViTForImageClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            centre = 1.0 if name.endswith(("norm.weight", "before.weight", "after.weight")) else 0.0
            wide = 0.45 if ".query.weight" in name or ".key.weight" in name else 0.2
            parameter.copy_(centre + wide * noise)
    model.save_pretrained(folder)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=mean, image_std=std).save_pretrained(folder)
    return folder


def make_convolutions_adversarial(model: torch.nn.Module, size: tuple[int, int]) -> torch.Tensor:
    """Fills every parameter, and the batch norms' statistics with such as keep what follows in range and are none of
    what the norms would see of the images [4, 3, …] of ``size`` that are returned."""
    make_adversarial(model, 3)
    generator = torch.Generator().manual_seed(5)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    pixels = torch.rand(4, 3, *size, generator=generator)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 4:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
        for norm in norms:
            norm.weight[::3] *= -1
            norm.momentum = 1.0
        model.train()(pixels)
        model.eval()
        for norm in norms:
            spread = norm.running_var.sqrt()
            norm.running_mean += 0.5 * spread * torch.randn(spread.shape, generator=generator)
            norm.running_var *= 0.3 + 2 * torch.rand(spread.shape, generator=generator)
    return pixels


def spread_logits(model: torch.nn.Module, pixels: torch.Tensor, *classifiers: Any, most: float = np.inf) -> None:
    """Scales ``classifiers`` so that the logits of an image differ from those of others by 2, and among themselves by
    no more than ``most``: their softmax is neither even nor certain."""
    with torch.no_grad():
        found = model(pixels).logits
        by_image, by_label = ((found - found.mean(dim=dim, keepdim=True)).std() for dim in (0, 1))
        for classifier in classifiers:
            classifier.weight *= min(2 / by_image, most / by_label)


def logits(model: Any, pictures: Any, labels: int = 5) -> np.ndarray:
    """What an image classifier gives, up to a constant, in the order of the labels."""
    scores = np.array([[dict(found)[f"LABEL_{i}"] for i in range(labels)] for found in model.classify(pictures)])
    scores = np.log(np.maximum(scores, 1e-37))
    return scores - scores.mean(axis=1, keepdims=True)


def load(folder: Path, weights: str = "fp32", **options: Any) -> Any:
    pocket = folder / f"{weights}.pocket"
    pocketformer.compress(folder, pocket, weights=weights)
    return pocketformer.load(pocket, **options)


def assert_notices(folder: Path, tensor: str, place: Any, pictures: Pictures) -> None:
    """What is added to a ``place`` of a ``tensor`` changes the logits by more than the tolerance."""
    results = []
    for change in (0.0, 2.0):
        tensors = load_file(folder / "model.safetensors")
        tensors[tensor][place] += change
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        results.append(logits(load(folder), pictures))
    assert deviation(results[0], results[1]) > 10


def assert_int8_is_near(folder: Path, pictures: Pictures) -> None:
    """And gives the same bytes in any batch and on any number of threads."""
    exact = load(folder).encode(pictures, normalize=True)
    model = load(folder, "int8", threads=1)
    rounded = model.encode(pictures, normalize=True)
    assert (exact * rounded).sum(axis=1).min() > 0.99
    assert model.encode(pictures * 3, normalize=True).tobytes() == rounded.tobytes() * 3
    two = pocketformer.load(folder / "int8.pocket", threads=2)
    assert two.encode(pictures, normalize=True).tobytes() == rounded.tobytes()


def assert_refused(folder: Path, cases: Iterable[tuple[Mapping[str, Any], type[Exception], tuple[str, ...]]]) -> None:
    """Of each case a change of the config, and the error and its words."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for change, error, words in cases:
        path.write_text(json.dumps({**values, **change}), encoding="utf-8")
        refused(folder, error, *words)
