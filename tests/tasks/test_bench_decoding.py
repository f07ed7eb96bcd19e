"""``pocketformer bench`` of a model that generates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pocketformer
from helpers.torch_decoders import BYTES, build
from pocketformer.cli import main


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    build("gemma3_text", folder, vocab_size=BYTES, max_position_embeddings=64)
    pocketformer.compress(folder, folder / "m.pocket", weights="fp32")
    return folder / "m.pocket"


def test_prompts_and_tokens_behind_them(pocket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(pocket), "--lengths", "5", "40", "9999", "--threads", "1", "2", "--seconds", "0.005"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["threads"], row["context"]) for row in result["decoding"]] == [(1, 5), (1, 40), (2, 5), (2, 40)]
    for row in result["decoding"]:
        assert row["prefill_tokens_per_second"] == pytest.approx(row["context"] / row["prefill_seconds"])
        assert row["decode_tokens_per_second"] == pytest.approx(1 / row["decode_seconds"])
        assert 0 < row["read_share"] < 2
        assert row["cache_bytes"] > 0
    assert result["peak_rss_bytes"] > 20e6
    assert main(command) == 0
    assert "one token more" in capsys.readouterr().out
    command = ["bench", str(pocket), "--lengths", "40", "--threads", "1", "--seconds", "0.005", "--kv", "fp16"]
    assert main([*command, "--json"]) == 0
    halves = json.loads(capsys.readouterr().out)
    assert (result["kv"], halves["kv"]) == ("fp32", "fp16")
    assert halves["decoding"][0]["cache_bytes"] == result["decoding"][1]["cache_bytes"] / 2


def test_what_it_does_not_measure(pocket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(pocket), "--lengths", "49"]) == 1
    assert "all lengths are above 48, the longest prompt" in capsys.readouterr().err
    assert main(["bench", str(pocket), "--batches", "2"]) == 1
    assert "--batches are of models that do not generate" in capsys.readouterr().err
    assert main(["bench", "--peak", "--kv", "fp16"]) == 1
    assert "--kv is of models that generate" in capsys.readouterr().err
