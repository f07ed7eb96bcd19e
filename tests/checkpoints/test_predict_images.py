"""The cost model over images: what docs/boards.md predicts, and its command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import pocketformer
import predict_boards
from pocketformer.cli import main
from pocketformer.engine import Engine
from pocketformer.perf.boards import BOARDS
from pocketformer.perf.predict import predict

SMALL = {"hidden_size": 384, "num_attention_heads": 6}
TINY = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}


def save(folder: Path, model: Any, side: int, weights: str = "int8") -> Path:
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    pocketformer.compress(folder, folder / "model.pocket", weights=weights)
    return folder / "model.pocket"


@pytest.mark.slow
def test_the_page_has_the_predictions(tmp_path: Path) -> None:
    """Weights do not matter, and the page's file of DINOv2-S has trained ones."""
    models = [
        (transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(num_labels=1000, **TINY)), 224),
        (transformers.Dinov2Model(transformers.Dinov2Config(image_size=518, patch_size=14, **SMALL)), 224),
        (transformers.MobileViTForImageClassification(transformers.MobileViTConfig(num_labels=1000)), 256),
    ]
    paths = [save(tmp_path / str(i), *model) for i, model in enumerate(models)]
    mark = predict_boards.BEGIN_IMAGES, predict_boards.END_IMAGES
    written, now = predict_boards.written(*mark).split(), predict_boards.image_table(paths).split()
    assert len(written) == len(now)
    for old, new in zip(written, now, strict=True):
        same = old == new or abs(float(old) - float(new)) <= max(1, 0.01 * float(old))
        assert same, f"{old} should be {new}: run scripts/predict_boards.py --images"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.MobileViTConfig(hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 8, 12, 20, 24, 28, 36])
    path = save(tmp_path, transformers.MobileViTModel(config), 64)
    assert main(["predict", str(path), "--board", "pi5", "--batches", "1", "2"]) == 0
    printed = capsys.readouterr().out
    assert "images/s" in printed
    assert "4096" in printed
    assert main(["predict", str(path), "--board", "pi5", "--lengths", "64"]) == 1
    assert "takes images of one size" in capsys.readouterr().err


def test_phases_follow_the_work(tmp_path: Path) -> None:
    config = transformers.MobileViTConfig(hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 8, 12, 20, 24, 28, 36])
    engine = Engine(save(tmp_path, transformers.MobileViTModel(config), 64), 1)
    one, two = (predict(engine, BOARDS["pi5"], [4096] * n, 1) for n in (1, 2))
    assert {"windows", "depthwise", "linear", "attention"} <= set(one["phases"])
    assert 1.8 < two["phases"]["depthwise"] / one["phases"]["depthwise"] < 2.2
    both = predict(engine, BOARDS["pi5"], [4096], 2)
    assert both["phases"]["linear"] < 0.7 * one["phases"]["linear"]
    assert one["memory"]["working"] == engine.program.arena_bytes([4096], 1)
