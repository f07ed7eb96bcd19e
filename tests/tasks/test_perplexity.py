"""Logits and perplexity of texts are those of transformers, within a context and in windows beyond it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pocketformer
from helpers.torch_decoders import BYTES, add_tokenizer, build, torch_logits
from pocketformer.cli import main
from pocketformer.tasks import score
from pocketformer.tasks.generate import Generator

TEXT = "Ada wrote the first program; naïve letters went to London. " * 3
HEAD = 1  # the beginning token


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    model = build(request.param, folder, vocab_size=BYTES)
    add_tokenizer(folder)
    pocketformer.compress(folder, folder / "m.pocket", weights="fp32")
    return model, folder / "m.pocket"


def losses(reference: Any, ids: np.ndarray) -> list[float]:
    """Of every token but the first."""
    logits = torch.tensor(torch_logits(reference, ids)).double()
    return list(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none").tolist())


def in_windows(reference: Any, ids: np.ndarray, context: int, stride: int, head: int = HEAD) -> float:
    end = min(context, len(ids))
    found = losses(reference, ids[:end])
    while end < len(ids):
        before, end = end, min(end + stride, len(ids))
        window = np.concatenate([ids[:head], ids[end - context + head : end]])
        found += losses(reference, window)[before - end :]
    assert len(found) == len(ids) - 1
    return float(np.mean(found))


def test_logits_are_transformers(made: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Generator.load(made[1], 1)
    ids = model.tokenize(TEXT)
    expected = torch_logits(made[0], ids)
    whole = model.logits(ids)
    np.testing.assert_allclose(whole, expected, atol=1e-3)
    assert model.logits(TEXT).tobytes() == whole.tobytes()
    assert model.logits(np.array(ids), last=True).tobytes() == whole[-1].tobytes()
    assert model.logits([7]).shape == (1, BYTES)
    for chunk in (1, 7, 64):  # however it is read
        monkeypatch.setattr(score, "CHUNK", chunk)
        assert model.logits(ids).tobytes() == whole.tobytes()
    with pytest.raises(ValueError, match="ids has 257 tokens, more than the context of 256: give fewer"):
        model.logits([5] * 257)
    for wrong in ([], [[5]], [0.5], [BYTES]):
        with pytest.raises(ValueError, match="ids"):
            model.logits(wrong)


def test_perplexity_is_transformers(made: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Generator.load(made[1], 1)
    ids = np.array(model.tokenize(TEXT))
    found = model.perplexity(TEXT)
    loss = float(np.mean(losses(made[0], ids)))
    assert found.negative_log_likelihood == pytest.approx(loss, rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(loss), rel=1e-4)
    assert found.tokens == len(ids) - 1
    assert model.perplexity(ids) == model.perplexity(ids.tolist()) == found
    monkeypatch.setattr(score, "_LOGITS", 5 * BYTES)  # a few rows at a time
    assert model.perplexity(TEXT) == found


@pytest.mark.parametrize(("context", "stride"), [(64, None), (64, 1), (40, 13), (50, 48), (179, 1), (180, 5)])
def test_windows_beyond_the_context(made: tuple[Any, Path], context: int, stride: int | None) -> None:
    model = Generator.load(made[1], 2, context=context)
    ids = np.array(model.tokenize(TEXT))[: 80 if stride == 1 else 180]
    expected = in_windows(made[0], ids, context, stride or context // 2)
    assert model.perplexity(ids, stride=stride).negative_log_likelihood == pytest.approx(expected, rel=1e-5)
    if len(ids) > context:
        other = in_windows(made[0], ids, context, (stride or context // 2) - 1 or 2)
        assert abs(other - expected) > 1e-5 * expected
        without = ids[1:]  # no beginning token, then in no window
        expected = in_windows(made[0], without, context, stride or context // 2, head=0)
        assert model.perplexity(without, stride=stride).negative_log_likelihood == pytest.approx(expected, rel=1e-5)


def test_wrong_arguments(made: tuple[Any, Path]) -> None:
    model = Generator.load(made[1], context=16)
    with pytest.raises(ValueError, match="text has 1 token; it must have at least 2"):
        model.perplexity("")
    for stride in (0, 15, -1, 2.0, True):
        with pytest.raises(ValueError, match="it must be an integer in 1…14, which leaves a token before"):
            model.perplexity(TEXT, stride=stride)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the context is 2; perplexity needs at least 3"):
        Generator.load(made[1], context=2).perplexity(TEXT)


def test_the_command(made: tuple[Any, Path], tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    model, file = Generator.load(made[1], context=64), tmp_path / "texts.txt"
    text = "Ada wrote the first program.\n\nIt rains in London, and the letters get wet.\n"
    file.write_text(text, encoding="utf-8")
    command = ["perplexity", str(made[1]), str(file), "--context", "64"]
    assert main([*command, "--stride", "9", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    expected = model.perplexity(text, stride=9)
    assert (result["perplexity"], result["tokens"], result["texts"]) == (expected.perplexity, expected.tokens, 1)
    assert main([*command, "--lines", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    parts = [model.perplexity(line) for line in text.split("\n") if line]
    loss = sum(part.negative_log_likelihood * part.tokens for part in parts) / sum(part.tokens for part in parts)
    assert (result["negative_log_likelihood"], result["texts"]) == (loss, 2)
    assert main(command) == 0
    assert f"perplexity {model.perplexity(text).perplexity:.4f}, " in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b" \n")))
    assert main(["perplexity", str(made[1]), "-"]) == 1
    assert "- is empty; give at least a few words" in capsys.readouterr().err
