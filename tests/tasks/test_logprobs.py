"""Log probabilities of what was written: the model's own, whatever options changed the choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pocketformer
from helpers.torch_decoders import BYTES, add_tokenizer, build, torch_logits
from pocketformer.cli import main
from pocketformer.sampling import LogProbabilities
from pocketformer.tasks.generate import Generator

PROMPT = "Ada wrote the first"
OPTIONS = {"temperature": 1.3, "top_p": 0.95, "seed": 11, "repetition_penalty": 1.2, "logit_bias": {70: 2.0}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("llama")
    model = build("llama", folder, vocab_size=BYTES)
    add_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    pocketformer.compress(folder, folder / "m.pocket", weights="fp32")
    return model, folder / "m.pocket"


@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_they_are_transformers(made: tuple[Any, Path], options: dict[str, Any]) -> None:
    model = Generator.load(made[1], 1)
    ids = model.tokenize(PROMPT)
    result = model.generate(PROMPT, 20, logprobs=4, **options)
    assert (result.text, result.prompt_tokens) == (model.generate(PROMPT, 20, **options), len(ids))
    reference = torch.log_softmax(torch.tensor(torch_logits(made[0], ids + result.ids)).double(), -1).numpy()
    assert len(result.logprobs) == len(result.ids) > 0
    for entry, token, row in zip(result.logprobs, result.ids, reference[len(ids) - 1 :], strict=False):
        assert entry.token == token
        assert entry.logprob == pytest.approx(row[token], abs=2e-4)
        assert [found for found, _ in entry.top] == np.argsort(-row)[:4].tolist()
        np.testing.assert_allclose([p for _, p in entry.top], np.sort(row)[::-1][:4], atol=2e-4)


def test_they_come_with_every_way_of_asking(made: tuple[Any, Path]) -> None:
    model = Generator.load(made[1], 2)
    whole = model.generate(PROMPT, 20, logprobs=2, **OPTIONS)
    stream = model.generate(PROMPT, 20, logprobs=2, stream=True, **OPTIONS)
    for count, _ in enumerate(stream, 1):
        assert len(stream.logprobs) == len(stream.ids) >= count
    assert (stream.logprobs, stream.ids, stream.seed) == (whole.logprobs, whole.ids, whole.seed)
    assert stream.finish_reason == whole.finish_reason
    together = model.generate(["A", PROMPT], 20, logprobs=2, **OPTIONS)
    assert together == [model.generate("A", 20, logprobs=2, **OPTIONS), whole]
    chat = model.chat([{"role": "user", "content": PROMPT}], 20, logprobs=0)
    assert len(chat.logprobs) == len(chat.ids)
    assert all(entry.top == () for entry in chat.logprobs)
    ended = model.generate(PROMPT, 5, logprobs=1, logit_bias={token: 99.0 for token in model.end_token_ids})
    assert (ended.logprobs, ended.ids, ended.finish_reason) == ([], [], "stop")
    for wrong in (-1, BYTES + 1, 1.0, True):
        with pytest.raises(ValueError, match=f"logprobs is {wrong}; it must be None or an integer in 0…{BYTES}"):
            model.generate(PROMPT, 5, logprobs=wrong)  # type: ignore[arg-type]


def test_equal_ones_are_by_number() -> None:
    row = LogProbabilities(6)
    row.read(np.array([1, 3, -2, 3, 3, 1], np.float32))
    assert [token for token, _ in row.top(2)] == [1, 3]
    assert [token for token, _ in row.top(6)] == [1, 3, 4, 0, 5, 2]
    assert sum(np.exp(p) for _, p in row.top(6)) == pytest.approx(1, abs=1e-6)
    row.read(np.array([0, -200, 0, 0, 0, 0], np.float32))  # whose probability is 0 in float32
    assert row.of(1) == pytest.approx(-200 - np.log(5), abs=1e-5)


def test_the_command(made: tuple[Any, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(made[1]), PROMPT, "--max-tokens", "5", "--json", "--logit-bias", "70=99"]
    assert main([*command, "--logprobs", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    expected = Generator.load(made[1]).generate(PROMPT, 5, logprobs=2, logit_bias={70: 99.0})
    assert [entry["token"] for entry in result["logprobs"]] == expected.ids == [70] * 5
    assert result["logprobs"][0]["top"] == [list(pair) for pair in expected.logprobs[0].top]
    with pytest.raises(SystemExit):
        main([*command, "--logit-bias", "a=1"])
