"""`pocketformer compare`: two files of one model side by side, for every task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketformer
from helpers.task_models import make
from pocketformer.cli import main
from pocketformer.compression import QuantizeOptions, compress
from pocketformer.perf.compare import compare

TEXTS = ["a cat sat on the mat", "the dog", "rain in the north and sun in the south"]
PLAIN = QuantizeOptions(random_tokens=0)


@pytest.mark.parametrize("task", ["embed", "classify", "tag", "answer", "fill_mask"])
def test_every_task(task: str, tmp_path: Path) -> None:
    model = make(task, tmp_path)
    int8 = tmp_path / "int8.pocket"
    compress(model.folder, int8, options=PLAIN)
    same = compare(model.pocket, model.pocket, TEXTS, threads=1, seconds=0)
    assert same["cosine"] == pytest.approx({"mean": 1, "p1": 1, "min": 1})
    assert same["agreement"] == (None if task == "embed" else 1)
    found = compare(model.pocket, int8, TEXTS, threads=1, seconds=0)
    assert 0.9 < found["cosine"]["min"] <= found["cosine"]["p1"] <= found["cosine"]["mean"] < 1
    assert found["files"][1]["file_bytes"] == int8.stat().st_size
    assert [file["weights"] for file in found["files"]] == ["fp32", "int8"]


def test_cosines_are_those_of_the_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make("embed", tmp_path)
    int8 = tmp_path / "int8.pocket"
    compress(model.folder, int8, options=PLAIN)
    a, b = (pocketformer.load(path).encode(TEXTS).astype(np.float64) for path in (model.pocket, int8))
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    arguments = ["compare", str(model.pocket), str(int8), "--input", str(texts), "--threads", "1"]
    assert main([*arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["cosine"]["mean"] == pytest.approx(expected.mean(), abs=1e-12)
    assert result["cosine"]["min"] == pytest.approx(expected.min(), abs=1e-12)
    assert main(arguments) == 0
    assert "first percentile" in capsys.readouterr().out


def test_a_label_that_changes_is_counted(tmp_path: Path) -> None:
    names = {"id2label": {"0": "O", "1": "B-A"}}
    one = make("tag", tmp_path / "one", plant={"b": 1, "c": 1}, **names)
    other = make("tag", tmp_path / "other", plant={"b": 1, "c": 0}, **names)
    texts = ["b c b b"]
    tokens = len(one.tokenizer.encode(texts[0]).ids)
    assert compare(one.pocket, other.pocket, texts, threads=1, seconds=0)["agreement"] == 1 - 1 / tokens


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    embed, tag = make("embed", tmp_path / "a"), make("tag", tmp_path / "b")
    with pytest.raises(ValueError, match="compare two files of one model"):
        compare(embed.pocket, tag.pocket, TEXTS)
    with pytest.raises(ValueError, match="texts is empty"):
        compare(embed.pocket, embed.pocket, [])
