"""The bits of every kernel, operator and of a real model are those that tests/golden/bits.json holds, on every ISA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.golden import (
    FEW_TEXTS,
    GOLDEN,
    MINILM_TEXTS,
    compress_minilm,
    graph_digests,
    kernel_digests,
    minilm_digest,
)
from pocketformer import _core

every_isa = pytest.mark.parametrize("isa", _core.isas())


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return content


@every_isa
def test_kernels(isa: str, golden: dict[str, Any]) -> None:
    assert kernel_digests(isa) == golden["kernels"]


@every_isa
def test_graphs(isa: str, golden: dict[str, Any]) -> None:
    assert graph_digests(isa) == golden["graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_minilm(weights: str, golden: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "minilm.pocket"
    compress_minilm(weights, path)
    for isa in _core.isas():
        monkeypatch.setenv("POCKETFORMER_ISA", isa)
        count = FEW_TEXTS if isa == "scalar" else MINILM_TEXTS
        assert minilm_digest(path, count) == golden["minilm"][f"{weights}, {count} texts"], isa
