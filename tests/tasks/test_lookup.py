"""Tokens that are tried together are the tokens that come one by one, whatever was guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketformer
from helpers.torch_decoders import BYTES, add_tokenizer, build
from pocketformer.cli import main
from pocketformer.tasks.generate import Generator
from pocketformer.tasks.lookup import Lookup

PROMPT = "Ada wrote the first letter. Ada wrote the first program. Ada wrote"
OPTIONS: list[dict[str, Any]] = [
    {"seed": 0},
    {"temperature": 0.3, "seed": 5},
    {"temperature": 1.2, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.1, "presence_penalty": 0.5},
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with windows, in int8, as most files are."""
    folder = tmp_path_factory.mktemp("gemma")
    build("gemma3_text", folder, vocab_size=BYTES, max_position_embeddings=2048)
    add_tokenizer(folder)
    pocketformer.compress(folder, folder / "m.pocket", calibration=[list(range(4, 260))] * 2)
    return folder / "m.pocket"


@pytest.mark.parametrize("options", OPTIONS)
def test_the_text_is_the_same(file: Path, options: dict[str, Any]) -> None:
    model = Generator.load(file, 1)
    plain = model.generate(PROMPT, 70, logprobs=2, **options)
    for lookup in (1, 3, 10, 64):
        assert model.generate(PROMPT, 70, logprobs=2, lookup=lookup, **options) == plain
    fresh = Generator.load(file, 3)
    stream = fresh.generate(PROMPT, 70, lookup=5, stream=True, **options)
    for _ in zip(range(9), stream, strict=False):
        pass
    stream.close()  # among guesses: what is kept of them is what was written
    assert fresh.generate(PROMPT + plain.text[:20], 30, **options) == Generator.load(file, 1).generate(
        PROMPT + plain.text[:20], 30, **options
    )
    assert fresh.generate(PROMPT, 70, lookup=5, stop=plain.text[20:23], **options) == model.generate(
        PROMPT, 70, stop=plain.text[20:23], **options
    )


def test_windows_move_on_among_guesses(file: Path) -> None:
    model = Generator.load(file, 1, context=2048)
    ids = np.random.default_rng(0).integers(4, BYTES, 60).tolist() * 26
    assert model.generate(ids, 120, lookup=9) == Generator.load(file, 1, context=2048).generate(ids, 120)


def test_fewer_runs_than_tokens_where_a_text_repeats(file: Path) -> None:
    """The model is made to say one of two tokens over and over."""
    model = Generator.load(file, 1)
    for options, least in (({"logit_bias": {70: 999.0}}, 6), ({}, 0)):
        for lookup in (0, 7):
            stream = model.generate(PROMPT, 64, stream=True, lookup=lookup, **options)
            list(stream)
            if not lookup:
                assert stream.steps in (len(stream.ids), len(stream.ids) - 1)
            else:
                assert len(stream.ids) >= least * stream.steps
                assert stream.steps < 64


def test_guesses_follow_the_longest_match() -> None:
    text = Lookup([1, 2, 3, 9, 5, 2, 3, 7, 1, 2])
    assert text.guess(3) == [3, 9, 5]
    text.add(3)
    assert text.guess(3) == [9, 5, 2]  # behind 1, 2, 3; behind 2, 3 alone stood 7 the last time
    text.add(8)
    assert text.guess(3) == []
    repeating = Lookup([4, 6] * 3)
    assert repeating.guess(5) == [4, 6, 4, 6, 4]
    assert Lookup([]).guess(3) == Lookup([1]).guess(3) == []


def test_wrong_arguments_and_the_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Generator.load(file, 1)
    for wrong in (-1, 65, 1.0, True, "prompt"):
        with pytest.raises(ValueError, match=r"lookup is .*; it must be an integer in 0…64"):
            model.generate(PROMPT, 5, lookup=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lookup is 3 and there are several prompts"):
        model.generate([PROMPT, PROMPT], 5, lookup=3)
    assert main(["generate", str(file), PROMPT, "--max-tokens", "64", "--json", "--lookup", "7"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["text"] == model.generate(PROMPT, 64)
    assert result["steps"] <= result["tokens"]
