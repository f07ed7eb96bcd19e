"""The public model on MiniLM: any form of input, any threads, any process; the same bits."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketformer
from helpers.corpus import texts
from helpers.graphs import MODEL, TEXT, tiny_graph
from pocketformer import Model, PocketFileError, TaskError
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket

SENTENCES = ["A cat sits on the mat.", "", "Zürich’s trams 🙂 東京", "The kettle whistles. " * 20, "ok"]
IDS = [[101, 4937, 102], [101, 2023, 2003, 102], [101, 102]]


@pytest.fixture(scope="module")
def model(minilm_int8: Path) -> Model:
    return pocketformer.load(minilm_int8)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model without a tokenizer."""
    path = tmp_path / "tiny.pocket"
    write_pocket(path, pack_graph(tiny_graph()), MODEL, TEXT, None)
    return path


def short_texts(count: int) -> list[str]:
    return [text for text in texts() if len(text) < 700][:count]


def test_encode(model: Model) -> None:
    embeddings = model.encode(SENTENCES)
    assert embeddings.shape == (5, 384)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    for text, row in zip(SENTENCES, embeddings, strict=True):  # alone, in order, whatever the neighbours
        assert model.encode(text).tobytes() == row.tobytes()


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_batches_change_nothing(model: Model, batch_tokens: int) -> None:
    listed = short_texts(40)
    calls: list[tuple[int, int]] = []
    embeddings = model.encode(iter(listed), batch_tokens=batch_tokens, progress=lambda *call: calls.append(call))
    assert embeddings.tobytes() == model.encode(listed).tobytes()
    assert calls[-1] == (40, 40)
    assert calls == sorted(calls)
    if batch_tokens == 1:
        assert len(calls) == 40


def test_threads_change_nothing(model: Model, minilm_int8: Path) -> None:
    listed = short_texts(40)
    assert pocketformer.load(minilm_int8, threads=1).encode(listed).tobytes() == model.encode(listed).tobytes()


def test_callable_with_texts_or_ids(model: Model) -> None:
    expected = model.encode(SENTENCES)
    assert model(SENTENCES).tobytes() == model(iter(SENTENCES)).tobytes() == expected.tobytes()
    assert model(np.array(SENTENCES)).tobytes() == model(texts=SENTENCES).tobytes() == expected.tobytes()
    assert model(SENTENCES[0]).tobytes() == expected[0].tobytes()
    assert model(input_ids=IDS).tobytes() == model.run(IDS).tobytes() == model(iter(IDS)).tobytes()


def test_typed(minilm_int8: Path, model: Model) -> None:
    assert isinstance(model, pocketformer.Embedder)
    assert isinstance(pocketformer.Embedder.load(minilm_int8, threads=1), pocketformer.Embedder)
    with pytest.raises(TaskError, match="a model for the task 'embed'; use Embedder"):
        pocketformer.Tagger.load(minilm_int8)
    with pytest.raises(AttributeError, match="no attribute 'transcribe'"):
        _ = model.transcribe


def test_rows_of_a_network_without_head(tmp_path: Path) -> None:
    path = tmp_path / "features.pocket"
    write_pocket(path, pack_graph(tiny_graph()), {**MODEL, "task": "features"}, TEXT, None)
    model = pocketformer.load(path)
    assert isinstance(model, pocketformer.Features)
    assert model([[1, 2]]).shape == (1, 36)
    with pytest.raises(TaskError, match="'features', which takes token ids"):
        model("text")
    with pytest.raises(TaskError, match=r"use Model\.run on token ids"):
        model.encode("text")


@pytest.mark.parametrize("size", ["shorter", "equal"])
def test_a_copy_outlives_what_happens_to_the_file(minilm_int8: Path, tmp_path: Path, size: str) -> None:
    path = tmp_path / "live.pocket"
    content = minilm_int8.read_bytes()
    path.write_bytes(content)
    model = pocketformer.load(path, threads=1, copy=True)
    expected = model.encode(SENTENCES[0]).tobytes()
    assert expected == pocketformer.load(minilm_int8).encode(SENTENCES[0]).tobytes()
    with open(path, "wb" if size == "shorter" else "r+b") as file:  # in place, as cp does
        file.write(bytes(100 if size == "shorter" else len(content)))
    assert model.encode(SENTENCES[0]).tobytes() == expected
    assert model.info()["file_bytes"] == len(content)
    path.write_bytes(content)
    assert pickle.loads(pickle.dumps(model))._source == (str(path), 1, True, None, None)


def test_licence_and_source_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pocket"
    write_pocket(path, pack_graph(tiny_graph()), {**MODEL, "license": "apache-2.0", "source": "org/tiny"}, TEXT, None)
    info = pocketformer.load(path).info()
    assert (info["license"], info["source"]) == ("apache-2.0", "org/tiny")


def test_empty_list(model: Model) -> None:
    assert model.encode([]).shape == (0, 384)
    assert model([]).shape == (0, 384)


def test_ids_in_any_form(model: Model) -> None:
    expected = model(IDS)
    assert expected.shape == (3, 384)
    assert model([np.array(ids, np.uint16) for ids in IDS]).tobytes() == expected.tobytes()
    assert model(tuple(map(tuple, IDS))).tobytes() == expected.tobytes()
    assert model(np.array([IDS[1], IDS[1]])).tobytes() == expected[[1, 1]].tobytes()
    types = [[0] * len(ids) for ids in IDS]
    assert model(IDS, token_type_ids=types).tobytes() == expected.tobytes()
    types[0][1] = 1
    assert model(IDS, token_type_ids=types).tobytes() != expected.tobytes()


def test_padding_is_left_out(model: Model) -> None:
    padded, mask = np.zeros((3, 6), np.int64), np.zeros((3, 6), np.int64)
    for i, (ids, begin) in enumerate(zip(IDS, (0, 2, 1), strict=True)):
        padded[i, begin : begin + len(ids)], mask[i, begin : begin + len(ids)] = ids, 1
    assert model(padded, mask).tobytes() == model(IDS).tobytes()
    assert model(padded, mask, np.zeros((3, 6), int)).tobytes() == model(IDS).tobytes()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_ids": [101, 102]}, ValueError, r"pass \[ids\]"),
        ({"input_ids": np.zeros(3, int)}, ValueError, r"shape \[3\]"),
        ({"input_ids": [[1.5]]}, TypeError, "float64"),
        ({"input_ids": "text"}, TypeError, "methods take texts"),
        ({"input_ids": [[101], [-1]]}, ValueError, r"input_ids\[1\] holds -1"),
        ({"input_ids": [[2**40]]}, ValueError, "1099511627776"),
        ({"input_ids": [[30522]]}, ValueError, "30522"),
        ({"input_ids": [[]]}, ValueError, "sequence 0 has no tokens"),
        ({"input_ids": [[101] * 513]}, ValueError, "513 tokens"),
        ({"input_ids": [[101]], "rows": [0]}, ValueError, "rows"),
        ({"input_ids": [[101, 102]], "token_type_ids": [[0]]}, ValueError, "token_type_ids"),
        ({"input_ids": [[101, 102]], "token_type_ids": [[0, 2]]}, ValueError, "types"),
        ({"input_ids": [[101, 102]], "attention_mask": [[1]]}, ValueError, "attention_mask"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, ValueError, "gaps"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[0, 0, 0]]}, ValueError, "without tokens"),
    ],
)
def test_bad_ids(model: Model, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.run(**arguments)
    assert model([[101, 102]]).shape == (1, 384)  # still works


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.classify("x"), TaskError, "'embed', not 'classify'; use Model.encode"),
        (lambda m: m.tag("x"), TaskError, "Model.encode"),
        (lambda m: m.answer("x", "y"), TaskError, "Model.encode"),
        (lambda m: m.fill_mask("x"), TaskError, "Model.encode"),
        (lambda m: m.encode(b"x"), TypeError, "decode"),
        (lambda m: m.encode(["x", 3]), TypeError, "a text is int"),
        (lambda m: m.encode("x", batch_tokens=0), ValueError, "batch_tokens is 0"),
        (lambda m: m.encode(["x", "\ud83d"]), ValueError, r"texts\[1\] holds '\\ud83d'"),
        (lambda m: m.encode(["x"] * 40 + ["\ud83d"]), ValueError, r"texts\[40\]"),
        (lambda m: m.similarity("x", np.zeros((2, 3, 4))), ValueError, r"b has shape \[2, 3, 4\]"),
        (lambda m: m.rank("x", ["y"]), TaskError, "'embed', not 'rank'; use Model.encode"),
        (lambda m: m.plan([0]), ValueError, "sequence 0 has no tokens"),
        (lambda m: m.plan([513]), ValueError, "513"),
    ],
)
def test_bad_calls(model: Model, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(model)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_bad_threads(tiny: Path, threads: Any) -> None:
    with pytest.raises(ValueError, match="threads is"):
        pocketformer.load(tiny, threads=threads)


def test_long_texts_are_cut_and_said_so_once(minilm_int8: Path) -> None:
    model = pocketformer.load(minilm_int8)
    long = "cat " * 300
    with pytest.warns(UserWarning, match=r"1 of 2 texts .* 256 tokens .* 46 tokens were cut") as caught:
        embeddings = model.encode(["cat", long])
    assert caught[0].filename == __file__
    assert model.encode(long).tobytes() == embeddings[1].tobytes()  # a second warning would be an error
    assert model.encode("cat " * 254).tobytes() == embeddings[1].tobytes()


def test_without_tokenizer(tiny: Path) -> None:
    model = pocketformer.load(tiny)
    assert model([[1, 2]]).shape == (1, 36)
    with pytest.raises(ValueError, match="no tokenizer"):
        model.encode("text")


def test_damaged_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pocket"
    write_pocket(path, pack_graph(tiny_graph()), MODEL, TEXT, b'{"model": 3}')
    with pytest.raises(PocketFileError, match="tokenizer"):
        pocketformer.load(path).encode("text")


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pocketformer.load(tmp_path / "none.pocket")
    (tmp_path / "text.pocket").write_text("not a model, but long enough to hold a header")
    with pytest.raises(PocketFileError, match="compress the model again"):
        pocketformer.load(tmp_path / "text.pocket")


def test_info_and_plan(model: Model, minilm_int8: Path) -> None:
    info = model.info()
    assert info["task"] == model.task == "embed"
    assert info["width"] == model.width == 384
    assert info["file_bytes"] == minilm_int8.stat().st_size
    assert sum(info["tensor_bytes"].values()) < info["file_bytes"]
    assert 8 < info["bits_per_weight"] < 8.2
    assert model.max_length == 256
    assert model.labels == []
    assert 0 < model.plan([16]) < model.plan([256]) < model.plan([256] * 8)
    assert "all-MiniLM-L6-v2" in repr(model)


def test_four_threads(model: Model) -> None:
    listed = short_texts(24)
    expected = model.encode(listed).tobytes()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: model.encode(listed).tobytes(), range(12)))
    assert set(results) == {expected}


def test_pickle(minilm_int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(minilm_int8.parent)
    model = pocketformer.load(minilm_int8.name, threads=1)
    data = pickle.dumps(model)
    assert len(data) < 1000
    monkeypatch.chdir("/")  # a relative path was made absolute
    copy = pickle.loads(data)
    assert copy.threads == 1
    assert copy.encode("cat").tobytes() == model.encode("cat").tobytes()


def encode_bytes(model: Model, text: str) -> bytes:
    return model.encode(text).tobytes()


def test_spawned_process(model: Model) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(encode_bytes, (model, "cat")) == model.encode("cat").tobytes()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12, of forking with threads
def test_fork_after_use(model: Model) -> None:
    expected = model.encode(SENTENCES[0]).tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if model.encode(SENTENCES[0]).tobytes() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert model.encode(SENTENCES[0]).tobytes() == expected


def test_compress_is_callable_whatever_was_imported_first() -> None:
    import pocketformer.compression.pipeline

    assert pocketformer.compression.pipeline is not None
    with pytest.raises(ValueError, match="/nowhere is not a folder"):
        pocketformer.compress("/nowhere", "/nowhere")


def test_no_warning_without_cut(model: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode("short")
