"""The pocket file: what is written is read back, mapped in place, replaced atomically, and refused when it lies."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from helpers.graphs import MODEL, TEXT, TOKENIZER_JSON, tiny_graph
from helpers.programs import quantize_graph
from pocketformer.errors import PocketFileError
from pocketformer.graph import Array, Graph
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import read_pocket, write_pocket

Header = dict[str, Any]
WORDS = {**MODEL, "task": "fill_mask"}


@pytest.fixture(params=["fp32", "int8"])
def graph(request: pytest.FixtureRequest) -> Graph:
    plain = tiny_graph(task="fill_mask", relative=True)
    return pack_graph(quantize_graph(plain) if request.param == "int8" else plain)


@pytest.fixture
def pocket(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pocket"
    write_pocket(path, pack_graph(quantize_graph(tiny_graph())), MODEL, TEXT, TOKENIZER_JSON)
    return path


def split(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path: Path, header: Header | bytes, data: bytes) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    encoded = encoded.ljust(-(-(8 + len(encoded)) // 64) * 64 - 8)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def test_round_trip(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "model.pocket"
    write_pocket(path, graph, WORDS, TEXT, TOKENIZER_JSON)
    file = read_pocket(path)
    assert file.graph.description() == graph.description()
    assert (file.graph.output, file.graph.vocab_size, file.graph.max_length) == (graph.output, 101, 40)
    assert (file.model, file.text) == (WORDS, TEXT)
    assert file.graph.params.keys() == graph.params.keys()
    for name, array in graph.params.items():
        assert file.graph.params[name].dtype == array.dtype
        np.testing.assert_array_equal(file.graph.params[name], array)
    assert json.loads(file.tokenizer() or b"") == json.loads(TOKENIZER_JSON)


def test_a_file_without_tokenizer(graph: Graph, tmp_path: Path) -> None:
    write_pocket(tmp_path / "model.pocket", graph, WORDS, TEXT, None)
    assert read_pocket(tmp_path / "model.pocket").tokenizer() is None


def test_safetensors_opens_it(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "model.pocket"
    write_pocket(path, graph, MODEL, TEXT, TOKENIZER_JSON)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "pocketformer"
        assert set(file.keys()) == {*graph.params, "tokenizer.json"}
        for name, array in graph.params.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


def test_tensors_are_aligned_views_of_one_map(pocket: Path) -> None:
    arrays = read_pocket(pocket).graph.params.values()
    assert len({id(root(array)) for array in arrays}) == 1
    for array in arrays:
        assert array.ctypes.data % 64 == 0
        assert array.nbytes % 64 == 0
        assert not array.flags.writeable


def root(array: Array) -> Any:
    """The object that owns the memory."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return base.obj if isinstance(base, memoryview) else base


def test_reading_copies_no_tensor(pocket: Path) -> None:
    import tracemalloc

    read_pocket(pocket)
    tracemalloc.start()
    file = read_pocket(pocket)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    weights = sum(array.nbytes for array in file.graph.params.values())
    header = weights - pocket.stat().st_size
    assert peak < 40 * abs(header)


def test_a_failed_write_leaves_the_old_file_and_no_other(pocket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pocket.read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_pocket(pocket, pack_graph(tiny_graph()), MODEL, TEXT, None)
    assert pocket.read_bytes() == before
    assert list(pocket.parent.iterdir()) == [pocket]


def test_a_killed_write_leaves_the_old_file(pocket: Path) -> None:
    before = pocket.read_bytes()
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from helpers.graphs import MODEL, TEXT, tiny_graph
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
write_pocket({str(pocket)!r}, pack_graph(tiny_graph()), MODEL, TEXT, None)
"""
    process = subprocess.run([sys.executable, "-c", script], check=False)
    assert process.returncode == -signal.SIGKILL
    assert pocket.read_bytes() == before


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_pocket(tmp_path / "model.pocket", pack_graph(tiny_graph()), MODEL, TEXT, None)
    finally:
        os.umask(old)
    assert (tmp_path / "model.pocket").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {**MODEL, "task": "paint"}}, "'task' is 'paint'; it must be one of embed"),
        ({"model": {key: MODEL[key] for key in MODEL if key != "family"}}, "field 'family' is missing"),
        ({"model": {**MODEL, "labels": "positive"}}, "'labels' is 'positive'; it must be a list of strings"),
        ({"text": {**TEXT, "max_length": 0}}, "'max_length' is 0; it must be an integer in 1"),
        ({"tokenizer_json": b"{"}, "tokenizer_json is not JSON"),
    ],
)
def test_write_refuses(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"model": MODEL, "text": TEXT, "tokenizer_json": None, **change}
    with pytest.raises(PocketFileError, match=message):
        write_pocket(tmp_path / "model.pocket", pack_graph(tiny_graph()), **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file has 0 bytes, too few for a header"),
        (b"1234567", "the file has 7 bytes"),
        (struct.pack("<Q", 2**63), "the header claims 9223372036854775808 bytes; the limit is 100000000"),
        (struct.pack("<Q", 120) + b"{}", "the header claims 120 bytes, but only 2 follow"),
        (struct.pack("<Q", 2) + b"{}", "data starts at byte 10, not at a multiple of 64"),
        (struct.pack("<Q", 56) + b" {}".ljust(56), "does not start with '{'"),
        (struct.pack("<Q", 56) + b"{".ljust(56), "the header is not JSON"),
        (struct.pack("<Q", 56) + b'{"\xff":1}'.ljust(56), "the header is not JSON"),
        (struct.pack("<Q", 56) + b"{}".ljust(56), "__metadata__ is None; it must be an object"),
        (struct.pack("<Q", 56) + b'{"a":1,"a":2}'.ljust(56), "has the key 'a' twice"),
        (struct.pack("<Q", 56) + b'{"a":NaN}'.ljust(56), "holds NaN"),
        (struct.pack("<Q", 200_056) + (b'{"a":' + b"[" * 200_051), "nested too deeply"),
        (struct.pack("<Q", 10_040) + (b'{"a":' + b"1" * 10_034 + b"}"), "is not JSON"),
    ],
)
def test_read_refuses_bytes(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pocket"
    path.write_bytes(content)
    with pytest.raises(PocketFileError, match=message) as caught:
        read_pocket(path)
    assert str(path) in str(caught.value)


def entry(header: Header) -> Header:
    """The entry of the first tensor."""
    return next(value for name, value in header.items() if name != "__metadata__")


def move(header: Header, begin: int, end: int) -> None:
    entry(header)["data_offsets"] = [entry(header)["data_offsets"][0] + begin, entry(header)["data_offsets"][1] + end]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(format="gguf"), "'format' is 'gguf'; it must be 'pocketformer'"),
        (lambda h: h["__metadata__"].update(version="1"), "'version' is '1'; this release reads version '2'.*compress"),
        (lambda h: h["__metadata__"].update(graphs=3), "'graphs' is 3; it must be a string"),
        (lambda h: h["__metadata__"].pop("graphs"), "__metadata__ has no 'graphs'"),
        (lambda h: h["__metadata__"].pop("weights"), "__metadata__ has no 'weights'"),
        (lambda h: h["__metadata__"].update(graphs="[]"), "graphs is a list of 0; it must be an object"),
        (lambda h: h["__metadata__"].update(graphs="{}"), "graphs main is None; it must be an object"),
        (lambda h: h["__metadata__"].update(graphs='{"main": {}}'), "it must hold 'main' alone, with domains"),
        (lambda h: h["__metadata__"].update(states="{}"), "field 'states' is an object of 0; it must be a list"),
        (lambda h: h["__metadata__"].update(weights="{}"), "names 'words', which is not among the weights"),
        (lambda h: h["__metadata__"].update(text='{"a":1,"a":1}'), "text has the key 'a' twice"),
        (lambda h: h["__metadata__"].update(model="{}"), "model: field 'name' is missing"),
        (lambda h: h["__metadata__"].update(text="[" * 100_000), "text is nested too deeply"),
        (lambda h: entry(h).update(dtype="F64"), "'dtype' is 'F64'; it must be one of I8, U8, I32, F32"),
        (lambda h: entry(h).update(shape=[-1, 36]), "'shape' is a list of 2; it must be a list of at most 8"),
        (lambda h: entry(h).update(shape=[True, 36]), "'shape' is a list of 2"),
        (lambda h: entry(h).update(shape=[2**62, 2**62]), "does not fit its"),
        (lambda h: entry(h).update(shape=7), "'shape' is 7"),
        (lambda h: entry(h).update(data_offsets=[0]), "a list of two integers"),
        (lambda h: entry(h).update(data_offsets=[0, 2.5]), "a list of two integers"),
        (lambda h: entry(h).update(extra=1), "field 'extra' is unknown"),
        (lambda h: entry(h).pop("dtype"), "field 'dtype' is missing"),
        (lambda h: move(h, 0, 64), "does not fit its"),
        (lambda h: move(h, 64, 64), "starts at byte 64 of the data, the tensor before ends at 0"),
        (lambda h: h.update(more={"dtype": "I8", "shape": [64], "data_offsets": [0, 64]}), "starts at byte 0"),
        (lambda h: h.update(more={"dtype": "I8", "shape": [3], "data_offsets": [0, 3]}), "not a multiple of 64"),
        (lambda h: h.update(more=[]), "tensor 'more' is a list of 0; it must be an object"),
        (lambda h: h["tokenizer.json"].update(dtype="I8"), "'tokenizer.json' is int8 .*; it must be 1-D uint8"),
        (lambda h: h.update({str(i): 0 for i in range(65_537)}), "tensors; the limit is 65536"),
    ],
)
def test_read_refuses_header(change: Callable[[Header], Any], message: str, pocket: Path) -> None:
    header, data = split(pocket)
    change(header)
    join(pocket, header, data)
    with pytest.raises(PocketFileError, match=message):
        read_pocket(pocket)


@pytest.mark.parametrize("size", [-64, -1, 1, 64])
def test_read_refuses_missing_and_surplus_data(size: int, pocket: Path) -> None:
    header, data = split(pocket)
    join(pocket, header, data[:size] if size < 0 else data + bytes(size))
    with pytest.raises(PocketFileError, match="the file holds"):
        read_pocket(pocket)


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pocket(tmp_path / "none.pocket")


def test_import_needs_only_numpy() -> None:
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
import numpy
before = set(sys.modules)
import pocketformer.pocketfile
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names))
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    foreign = [
        name for name in json.loads(output.replace("'", '"')) if name.split(".")[0] not in ("numpy", "pocketformer")
    ]
    assert foreign == []
