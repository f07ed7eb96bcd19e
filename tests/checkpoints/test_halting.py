"""Tokens that halt, of models from folders, near A-ViT written in torch: there all tokens stay, and masks say which
count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import pocketformer
from helpers.torch_models import deviation, make_adversarial
from pocketformer import _core
from pocketformer.cli import main
from pocketformer.errors import UnsupportedModelError

LAYERS, GATE = 4, (3.0, 2.0)
SIZES: dict[str, Any] = {
    "hidden_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "image_size": 40,
    "patch_size": 8,
    "layer_norm_eps": 1e-2,
    "num_labels": 5,
}
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3)).astype(np.uint8)


def build(kind: str, folder: Path) -> Any:
    config = getattr(transformers, f"{kind.partition('For')[0].removesuffix('Model')}Config")(**SIZES)
    config._attn_implementation = "eager"
    model: Any = getattr(transformers, kind)(config).eval()
    make_adversarial(model, 3)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 40, "width": 40}).save_pretrained(folder)
    return model


@torch.no_grad()
def halted(layers: Any, x: torch.Tensor, scale: float, center: float) -> tuple[torch.Tensor, list[int]]:
    """The class tokens' sums [images, width] of embedded tokens ``x``, and how many tokens each layer works on."""
    count = torch.zeros(x.shape[:2])
    left, mask, total, worked = torch.ones(x.shape[:2]), torch.ones(x.shape[:2]), 0, []
    for i, layer in enumerate(layers):
        worked.append(int(mask.sum()))
        unseen = (1 - mask)[:, None, None, :] * torch.finfo(torch.float32).min
        x = masked_layer(layer, x, unseen)
        h = torch.ones_like(count) if i == LAYERS - 1 else torch.sigmoid(x[:, :, 0] * scale - center)
        count = count + h
        reached = (count >= 0.99).float() * mask
        going_on = (count < 0.99).float() * mask
        total = total + x * (left * reached + h * going_on)[:, :, None]
        left, mask = left - h * going_on, going_on
    return total[:, 0], worked  # type: ignore[index]


def masked_layer(layer: Any, x: torch.Tensor, unseen: torch.Tensor) -> torch.Tensor:
    normed = layer.layernorm_before(x)
    q, k, v = (
        getattr(layer.attention, f"{part}_proj")(normed).unflatten(-1, (4, -1)).transpose(1, 2) for part in "qkv"
    )
    shares = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + unseen).softmax(-1)
    x = x + layer.attention.o_proj((shares @ v).transpose(1, 2).flatten(2))
    return x + layer.mlp(layer.layernorm_after(x))


def test_parity_with_torch(tmp_path: Path) -> None:
    model = build("ViTForImageClassification", tmp_path)
    processor = ViTImageProcessorPil(size={"height": 40, "width": 40})
    with torch.no_grad():
        embedded = model.vit.embeddings(processor(PICTURES, return_tensors="pt")["pixel_values"])
        total, worked = halted(model.vit.layers, embedded, *GATE)
        expected = model.classifier(model.vit.layernorm(total)).numpy()
    assert worked[0] > worked[1] > worked[2] > worked[3] > 0
    pocketformer.compress(tmp_path, tmp_path / "halts.pocket", weights="fp32", halt=GATE)
    file = pocketformer.pocketfile.read_pocket(tmp_path / "halts.pocket")
    session = _core.Session(file.program)
    pixels = processor(PICTURES, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    found = session.run({"pixels": np.ascontiguousarray(pixels.reshape(-1, 3), np.float32)})
    assert deviation(found, expected) < 1
    rows = [session.rows()[f"tokens{i or ''}"] for i in range(LAYERS)]  # with its class token an image is done
    assert rows[:2] == worked[:2]
    assert all(mine <= masked for mine, masked in zip(rows, worked, strict=True))
    pocketformer.compress(tmp_path, tmp_path / "whole.pocket", weights="fp32")
    whole: Any = pocketformer.load(tmp_path / "whole.pocket")
    with torch.no_grad():
        same = model(processor(PICTURES, return_tensors="pt")["pixel_values"]).logits.numpy()
    assert deviation(expected, same) > 10  # tokens do leave
    assert len(whole.classify(PICTURES)) == 5


def test_embedders_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("ViTForMaskedImageModeling", tmp_path)
    pocket = tmp_path / "halts.pocket"
    assert main(["compress", str(tmp_path), "-o", str(pocket), "--halt", "3,2"]) == 0
    model = pocketformer.ImageEmbedder.load(pocket)
    assert model.encode(PICTURES).shape == (5, 40)
    assert model.encode(PICTURES[1]).tobytes() == model.encode(PICTURES)[1].tobytes()
    with pytest.raises(ValueError, match="this model's tokens halt; compress the checkpoint without halt"):
        model.encode(PICTURES, patches=True)
    for arguments, message in (
        (["--halt", "0,1"], "halt is 0.0, 1.0; it must be a scale above 0"),
        (["--halt", "3,2", "--budget", "1MB"], "--halt was given beside a limit"),
        (["--halt", "3,2", "--merge", "2"], "beside merge, width, a plan or a limit"),
    ):
        assert main(["compress", str(tmp_path), "-o", str(pocket), *arguments]) == 1
        assert message in capsys.readouterr().err
    build("Dinov2ForImageClassification", tmp_path)
    with pytest.raises(UnsupportedModelError, match="the output is not made of the first token alone"):
        pocketformer.compress(tmp_path, pocket, halt=GATE)
