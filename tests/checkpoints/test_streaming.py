"""Tensor by tensor gives the same file as all at once, leaves nothing behind when it stops, and stays small."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.by_rows import ByRows
from helpers.graphs import MODEL, TEXT, TOKENIZER_JSON, tiny_graph
from pocketformer.compression import QuantizeOptions, compress_checkpoint, compress_graph, packed
from pocketformer.compression.pipeline import Memory
from pocketformer.compression.quantize import choose_rotations, quantize_graph
from pocketformer.errors import PocketFileError
from pocketformer.graph import Graph
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket
from pocketformer.pocketwriter import writing
from pocketformer.sources.huggingface import Checkpoint

GRAPHS: list[dict[str, Any]] = [
    {},
    {"task": "fill_mask", "relative": True},
    {"hidden": 64, "ffn": 200, "kv_heads": 1, "vocab": 333},
]


def model(graph: Graph, weights: str = "fp32") -> dict[str, Any]:
    task = "fill_mask" if any(domain["kind"] == "selected" for domain in graph.domains) else "embed"
    return {**MODEL, "task": task, "weights": weights}


@pytest.fixture(params=GRAPHS, ids=["odd", "tied", "wide"])
def graph(request: pytest.FixtureRequest) -> Graph:
    return tiny_graph(**request.param)


@pytest.mark.parametrize("weights", ["int8", "fp32"])
def test_the_layout_is_that_of_the_packed_graph(graph: Graph, weights: str) -> None:
    whole = pack_graph(quantize_graph(graph) if weights == "int8" else graph)
    slots = packed.layout(replace(whole, params={}))
    assert list(slots) == list(whole.params)
    for name, array in whole.params.items():
        assert (slots[name].shape, slots[name].dtype, slots[name].nbytes) == (array.shape, array.dtype, array.nbytes)


@pytest.mark.parametrize("weights", ["int8", "fp32"])
@pytest.mark.parametrize("elements", [1, 2000, 1 << 20])
def test_parts_make_the_whole(graph: Graph, weights: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the parts are: they never share a number."""
    whole = pack_graph(quantize_graph(graph) if weights == "int8" else graph)
    monkeypatch.setattr(packed, "ELEMENTS_AT_ONCE", elements)
    by_rows: dict[str, Any] = {
        name: ByRows(array) if array.ndim == 2 else array for name, array in graph.params.items()
    }
    result, _ = compress_graph(replace(graph, params=by_rows), weights)
    assert result.description() == whole.description()
    assert list(result.params) == list(whole.params)
    for name, array in whole.params.items():
        np.testing.assert_array_equal(result.params[name], array, err_msg=name)
    if elements == 1:
        vocabulary = by_rows["words.weight"]
        assert vocabulary.most == 16


@pytest.mark.parametrize("elements", [1, 1 << 20])
@pytest.mark.parametrize("table_bits", [3, 4, 7])
def test_few_bits_are_packed_in_parts(
    graph: Graph, elements: int, table_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = QuantizeOptions(table_bits=table_bits, group=32, refit=0)
    whole = pack_graph(quantize_graph(graph, options, linear_bits=4))
    monkeypatch.setattr(packed, "ELEMENTS_AT_ONCE", elements)
    result, report = compress_graph(graph, "int4", options)
    assert result.description() == whole.description()
    assert list(result.params) == list(whole.params)
    for name, array in whole.params.items():
        np.testing.assert_array_equal(result.params[name], array, err_msg=name)
    assert sum(tensor.after for tensor in report.tensors) == report.stages[-1].after


@pytest.mark.parametrize("weights", ["int8", "fp32"])
def test_the_file_is_that_of_the_packed_graph(graph: Graph, weights: str, tmp_path: Path) -> None:
    whole, report = compress_graph(graph, weights)
    write_pocket(tmp_path / "whole", whole, model(graph, weights), TEXT, TOKENIZER_JSON)
    streamed = compress_checkpoint(Checkpoint(graph, model(graph), TEXT, TOKENIZER_JSON), tmp_path / "parts", weights)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert streamed.file_bytes == (tmp_path / "whole").stat().st_size
    assert streamed.tensors == report.tensors
    assert streamed.stages == report.stages


def test_errors_in_the_report_are_those_of_the_weights(graph: Graph) -> None:
    from helpers.rounding import dequantize

    options = QuantizeOptions(scaling="none")  # the weights that are rounded are then those of the graph
    quantized = quantize_graph(graph, options)
    rotations = choose_rotations(graph, options)
    _, report = compress_graph(graph, options=options)
    for tensor in report.tensors:
        name = tensor.name.removesuffix(".weight")
        if name not in rotations:
            assert tensor.error == 0
            continue
        plain = graph.params[tensor.name]
        real = dequantize(quantized.params[tensor.name], quantized.params[f"{name}.scale"], rotations[name])
        assert tensor.error == pytest.approx(np.linalg.norm(real - plain) / np.linalg.norm(plain), rel=1e-6)
    assert max(tensor.peak for tensor in report.tensors if "layer" in tensor.name) > 1
    assert "largest input outlier" in str(report)


def test_a_writer_takes_only_what_fits(graph: Graph, tmp_path: Path) -> None:
    graph = pack_graph(graph)
    slots = packed.layout(graph)
    whole = np.zeros(slots["norm.weight"].shape, np.float32)
    for begin, part in ((0, whole.astype(np.float64)), (1, whole), (-1, whole[1:])):
        message = rf"part of 'norm\.weight' is {part.dtype} \[{len(part)}\] from {begin} on; the tensor is float32"
        with (
            pytest.raises(ValueError, match=message),
            writing(tmp_path / "file", graph, slots, model(graph), TEXT, None) as file,
        ):
            file.write("norm.weight", begin, part)
    assert os.listdir(tmp_path) == []


def test_a_damaged_graph_leaves_the_old_file(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    params = {**graph.params, "norm.weight": np.full_like(graph.params["norm.weight"], np.inf)}
    broken = Checkpoint(replace(graph, params=params), model(graph), TEXT, TOKENIZER_JSON)
    with pytest.raises(PocketFileError, match=r"'norm.weight' holds NaN or infinity"):
        compress_checkpoint(broken, path, "fp32")
    with pytest.raises(PocketFileError, match="'task' is 'sing'"):
        compress_checkpoint(Checkpoint(graph, {**MODEL, "task": "sing"}, TEXT, TOKENIZER_JSON), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("when", ["words", "layer1.up", "write"])
def test_an_interrupt_leaves_the_old_file(graph: Graph, when: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def progress(what: str, share: float) -> None:
        assert 0 <= share <= 1
        if what == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_checkpoint(Checkpoint(graph, model(graph), TEXT, TOKENIZER_JSON), path, progress=progress)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_memory_of_a_sink() -> None:
    memory = Memory({"a": packed.Slot(np.dtype(np.float32), (4, 2), (3, 2))})
    memory.write("a", 1, np.ones((2, 2), np.float32))
    assert memory.params["a"].sum() == 4
