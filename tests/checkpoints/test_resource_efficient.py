"""The toy of the Resource-Efficient Transformer: its counts exactly, and what our formats make of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "resource_efficient.py"
    spec = importlib.util.spec_from_file_location("resource_efficient", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_parameters_and_bytes_are_those_of_the_paper(example: ModuleType) -> None:
    for config, count, size in ((example.BASELINE, 140_288, 1_122_304), (example.EFFICIENT, 67_072, 536_576)):
        params = example.weights(config)
        assert config.params == count == sum(array.size for array in params.values())
        assert sum(array.nbytes for array in params.values()) == size
        assert sum(array.size for array in example.graph(config, params).params.values()) == count


def test_files_are_small_and_say_the_same(example: ModuleType, tmp_path: Path) -> None:
    ids = np.random.default_rng(1).integers(0, 1000, example.LENGTH)
    for config in (example.BASELINE, example.EFFICIENT):
        expected = example.original(config, example.weights(config), ids)
        for weights, least in (("fp32", 1 - 1e-6), ("int8", 0.999), ("int4", 0.98)):
            path = tmp_path / "ret.pocket"
            y = example.compressed(config, path, weights).run([ids])
            cosine = (y * expected).sum() / np.linalg.norm(y) / np.linalg.norm(expected)
            print(f"\nd = {config.hidden}, {weights}: {path.stat().st_size:,} bytes, cosine {cosine:.5f}")
            assert cosine >= least
            if weights == "int8":
                assert path.stat().st_size <= 0.15 * 8 * example.BASELINE.params
