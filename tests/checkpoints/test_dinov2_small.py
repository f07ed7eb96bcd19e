"""int8 on the trained weights of DINOv2-S: features of parts of a photograph stay where they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

import pocketformer
from helpers.dinov2_small import write_dinov2_small

PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.mark.slow
def test_int8_keeps_features(tmp_path: Path) -> None:
    write_dinov2_small(tmp_path)
    photo = Image.open(PHOTO)
    parts = [photo.crop((x, y, x + n, y + n)) for n, x, y in ((160, 0, 0), (256, 100, 60), (400, 90, 190))]
    found: dict[str, Any] = {}
    for weights in ("fp32", "int8"):
        pocketformer.compress(tmp_path, tmp_path / f"{weights}.pocket", weights=weights)
        model: Any = pocketformer.load(tmp_path / f"{weights}.pocket")
        found[weights] = model.encode(parts, patches=True), model.encode(parts)
    for exact, rounded, least in zip(found["fp32"], found["int8"], (0.997, 0.999), strict=True):
        cosines = (exact * rounded).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(rounded, axis=-1)
        assert cosines.mean() > least
    assert (tmp_path / "int8.pocket").stat().st_size < 24e6
