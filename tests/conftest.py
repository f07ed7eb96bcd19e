"""Fixtures that several modules share: the compressed MiniLM takes a while to make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pocketformer
from helpers.models import model_folder

for variable in ("POCKETFORMER_ISA", "POCKETFORMER_THREADS"):  # a caller's settings are no test's business
    os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def minilm_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm") / "minilm.int8.pocket"
    pocketformer.compress(model_folder("minilm"), path)
    return path


@pytest.fixture(scope="session")
def minilm_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm") / "minilm.fp32.pocket"
    pocketformer.compress(model_folder("minilm"), path, weights="fp32")
    return path
