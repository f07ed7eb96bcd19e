"""Models of images under a budget: pictures to see weights with, plans that are kept to, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import pocketformer
from helpers.torch_models import make_adversarial
from pocketformer.cli import main
from pocketformer.compression import QuantizeOptions, make_plan
from pocketformer.compression import pictures as of_images
from pocketformer.compression.pictures import FEWEST, made_up_pictures, sample
from pocketformer.sources.huggingface import load_checkpoint

SIZE = 32
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 16 patches are run on by the dozen else."""
    monkeypatch.setattr(of_images, "MOST", 9)


def written(model: torch.nn.Module, folder: Path) -> Path:
    make_adversarial(model, 0)
    model.save_pretrained(folder)  # type: ignore[operator]
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(intermediate_size=256, num_labels=5, **SHAPE)
    return written(ViTForImageClassification(config).eval(), tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(6):
        spots = Image.fromarray(rng.integers(0, 256, (5 + i, 4, 3)).astype(np.uint8))
        spots.resize((48, 40)).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("given", [False, True], ids=["made up", "photos"])
def test_a_file_is_never_above_its_budget(vit: Path, photos: Path, given: bool, share: float, tmp_path: Path) -> None:
    calibration = photos if given else None
    pocketformer.compress(vit, tmp_path / "int8.pocket")
    whole, least = (tmp_path / "int8.pocket").stat().st_size, 0
    try:
        make_plan(vit, budget=1)
    except ValueError as error:
        least = int(str(error).split(" has ")[1].split(" ")[0].replace(",", ""))
    limit = least + int(share * (whole - least))
    report = pocketformer.compress(vit, tmp_path / "m.pocket", budget=limit, calibration=calibration)
    assert report.file_bytes == (tmp_path / "m.pocket").stat().st_size <= limit
    pictures = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
    assert len(pocketformer.load(tmp_path / "m.pocket").classify(pictures)) == 3


def test_layers_get_narrower_for_photos_alone(vit: Path, photos: Path) -> None:
    """Channels that made-up pictures leave idle may be those that photos need."""
    with pytest.raises(ValueError, match=r"fewest bits, as wide as it is: for narrower layers give photos") as refused:
        make_plan(vit, budget=1)
    least = int(str(refused.value).split(" has ")[1].split(" ")[0].replace(",", ""))
    with pytest.raises(ValueError, match=r"fewest bits, 64 hidden channels a layer") as refused:
        make_plan(vit, budget=1, calibration=photos)
    assert int(str(refused.value).split(" has ")[1].split(" ")[0].replace(",", "")) < least
    assert not make_plan(vit, budget=least).prunes


def test_dinov2_is_planned_and_what_costs_least_is_done_first(tmp_path: Path) -> None:
    """Of two layers the second does nothing: it loses its bits first."""
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(mlp_ratio=4, **SHAPE)).eval()
    folder = written(model, tmp_path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer.1." in name and "layer_scale" in name:
                parameter.zero_()
    model.save_pretrained(folder)
    whole = pocketformer.compress(folder, tmp_path / "m.pocket").file_bytes
    plan = make_plan(folder, budget=whole - 12_000)
    assert plan.file_bytes is not None
    assert whole - 24_000 < plan.file_bytes <= whole - 12_000
    assert plan.error == pytest.approx(0, abs=1e-9)
    assert all("1" in name.split(".") for name in plan.bits)


def test_pictures_are_as_bright_as_photos_and_the_same_each_time(vit: Path) -> None:
    loaded = load_checkpoint(str(vit))
    pictures = [made_up_pictures(loaded, tokens) for tokens in (1, 1, 17 * 9)]
    assert [len(of.lengths) for of in pictures] == [FEWEST, FEWEST, 9]
    assert np.array_equal(pictures[0].inputs["pixels"], pictures[1].inputs["pixels"])
    assert (pictures[2].lengths == SIZE * SIZE).all()
    image = pictures[2].inputs["pixels"].reshape(9, SIZE, SIZE, 3)
    assert 0.3 < image.std() < 1.2
    assert abs(image.mean()) < 0.6
    image = image - image.mean(axis=(1, 2), keepdims=True)
    near, far = image[:, :, :-1] * image[:, :, 1:], image[:, :, : -SIZE // 2] * image[:, :, SIZE // 2 :]
    assert near.mean() > 2 * far.mean(), "neighbours are alike"


def test_photos_are_chosen_from(vit: Path, photos: Path) -> None:
    loaded = load_checkpoint(str(vit))
    some = sample(loaded, photos, 17 * 5, 0)
    every = sample(loaded, [Image.open(path) for path in sorted(photos.glob("*.png"))], 10**6, 0)
    assert (len(some.lengths), len(every.lengths)) == (5, 6)
    parts = np.split(every.inputs["pixels"], 6)
    assert all(any(np.array_equal(part, of) for of in parts) for part in np.split(some.inputs["pixels"], 5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["A text.", "Another one."], "calibration has 'A text.', which is no file, and this model takes images"),
        ([np.zeros((SIZE, SIZE, 3), np.uint8)] * 2, "calibration has 2 images; it needs at least 4"),
    ],
)
def test_what_is_no_calibration_is_refused(vit: Path, given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        pocketformer.compress(vit, tmp_path / "m.pocket", calibration=given)
    assert not (tmp_path / "m.pocket").exists()


def test_four_bits_and_heads_need_no_photos(vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.pocket"
    arguments = [
        "compress",
        str(vit),
        "-o",
        str(out),
        "--weights",
        "int4",
        "--prune-ffn",
        "0.5",
        "--prune-heads",
        "0.5",
    ]
    assert main(arguments) == 0
    graph = pocketformer.load(out)._engine.file.graph  # type: ignore[attr-defined]
    assert graph.weights["layers.0.ffn_up"]["n"] == 128
    assert graph.weights["layers.0.ffn_up"]["format"] == "i4"
    assert graph.weights["embed.positions"]["format"] != "i4"
    assert "layers.0.ffn_down" in capsys.readouterr().out


def test_better_than_to_the_nearest(vit: Path, tmp_path: Path) -> None:
    """Four bits that were rounded on pictures that are made up, judged on others."""
    pictures = np.random.default_rng(3).integers(0, 256, (24, 4, 4, 3)).astype(np.uint8)
    images = [np.asarray(Image.fromarray(of).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for of in pictures]
    found = {}
    for name, weights, options in (
        ("exact", "fp32", None),
        ("seen", "int4", None),
        ("nearest", "int4", QuantizeOptions(random_tokens=0)),
    ):
        pocketformer.compress(vit, tmp_path / f"{name}.pocket", weights=weights, options=options)
        model = pocketformer.load(tmp_path / f"{name}.pocket")
        rows = model.classify(images)
        found[name] = np.array([[dict(row)[f"LABEL_{i}"] for i in range(5)] for row in rows])
    errors = {name: np.abs(found[name] - found["exact"]).mean() for name in ("seen", "nearest")}
    assert errors["seen"] < 0.9 * errors["nearest"]


def test_memory_and_latency_of_an_image(vit: Path, photos: Path) -> None:
    whole = make_plan(vit, max_memory="1GB", threads=1, board="pi4")
    assert whole.seconds
    assert whole.memory_bytes
    limit = 0.95 * whole.seconds
    plan = make_plan(vit, latency=limit, threads=1, board="pi4", calibration=photos)
    assert plan.seconds is not None
    assert plan.seconds <= limit
    with pytest.raises(ValueError, match=r"length is 64, but the model takes images of one size; leave it out"):
        make_plan(vit, latency=limit, length=64)
