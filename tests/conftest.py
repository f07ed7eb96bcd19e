"""What several modules share: the compressed MiniLM, and ``--quick``, which leaves out what takes long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pocketformer
from helpers.models import model_folder
from pocketformer import _core
from pocketformer.compression import QuantizeOptions

for variable in ("POCKETFORMER_ISA", "POCKETFORMER_THREADS"):  # a caller's settings are no test's business
    os.environ.pop(variable, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="leave out tests marked slow and all but the best ISA; the int8 MiniLM is rounded to the nearest",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("quick"):
        return
    left_out = {item for item in items if item.get_closest_marker("slow") or _isa(item) in _core.isas()[1:]}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def _isa(item: pytest.Item) -> object:
    return item.callspec.params.get("isa") if hasattr(item, "callspec") else None


@pytest.fixture(scope="session")
def minilm_int8(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """As ``compress`` makes it."""
    path = tmp_path_factory.mktemp("minilm") / "minilm.int8.pocket"
    options = QuantizeOptions(random_tokens=0) if pytestconfig.getoption("quick") else None
    pocketformer.compress(model_folder("minilm"), path, options=options)
    return path


@pytest.fixture(scope="session")
def minilm_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm") / "minilm.fp32.pocket"
    pocketformer.compress(model_folder("minilm"), path, weights="fp32")
    return path
