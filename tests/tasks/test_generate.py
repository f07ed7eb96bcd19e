"""Texts that go on: as transformers writes them, the same in every way of asking, and ended as they should be."""

from __future__ import annotations

import gc
import json
import pickle
import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pocketformer
from helpers.graphs import MODEL, TEXT, tiny_graph
from helpers.torch_decoders import BYTES, add_tokenizer, build, change_config, torch_logits
from pocketformer.cli import main
from pocketformer.compression import QuantizeOptions
from pocketformer.console import megabytes
from pocketformer.errors import PocketFileError, TaskError
from pocketformer.packing import pack_graph
from pocketformer.pocketfile import write_pocket
from pocketformer.sampling import Sampling
from pocketformer.tasks.generate import CHUNK, Generator
from pocketformer.tasks.stream import Spelling

PROMPT = "Ada wrote the first"
DRAWN = {"temperature": 1.3, "top_p": 0.95, "seed": 11}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """transformers' model and the fp32 file of a decoder with windows."""
    folder = tmp_path_factory.mktemp("gemma")
    model = build("gemma3_text", folder, vocab_size=BYTES, max_position_embeddings=1024)
    add_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    pocketformer.compress(folder, folder / "m.pocket", weights="fp32")
    return model, folder / "m.pocket"


@pytest.fixture(scope="module")
def model(made: tuple[Any, Path]) -> Generator:
    return Generator.load(made[1], 1)


def prompt_ids(model: Generator) -> list[int]:
    return model.tokenize(PROMPT)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.4}])
def test_greedy_text_is_transformers(made: tuple[Any, Path], model: Generator, options: dict[str, Any]) -> None:
    ids = prompt_ids(model)
    stream = model.generate(PROMPT, 40, stream=True, **options)
    text = "".join(stream)
    reference = made[0].generate(
        torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=[2, 3], pad_token_id=0, **options
    )
    expected = reference[0, len(ids) :].tolist()
    assert stream.ids == [token for token in expected if token not in (2, 3)]
    assert stream.finish_reason == ("stop" if expected[-1] in (2, 3) else "length")
    assert stream.prompt_tokens == len(ids)
    assert text == model.generate(PROMPT, 40, **options) == model.generate(ids, 40, **options)


def test_int8_writes_much_the_same(made: tuple[Any, Path], tmp_path: Path) -> None:
    pocketformer.compress(made[1].parent, tmp_path / "m.pocket", weights="int8")
    model = Generator.load(tmp_path / "m.pocket")
    ids = np.random.default_rng(0).integers(4, BYTES, 200)
    expected = torch.log_softmax(torch.tensor(torch_logits(made[0], ids)), -1).double()
    actual = torch.log_softmax(torch.tensor(model.logits(ids)), -1).double()
    divergence = (expected.exp() * (expected - actual)).sum(-1).mean()
    assert divergence < 0.02
    assert model.generate(ids.tolist(), 5, seed=1, temperature=1.0)


def test_a_seed_is_a_text(made: tuple[Any, Path], model: Generator) -> None:
    text = model.generate(PROMPT, 40, **DRAWN)
    assert text == "".join(model.generate(PROMPT, 40, stream=True, **DRAWN))
    assert text == model(PROMPT, 40, **DRAWN)
    assert Generator.load(made[1], 3).generate(PROMPT, 40, **DRAWN) == text
    assert model.generate(PROMPT, 40, **{**DRAWN, "seed": 12}) != text
    unseeded = model.generate(PROMPT, 20, stream=True, temperature=1.3)
    assert "".join(unseeded) == model.generate(PROMPT, 20, temperature=1.3, seed=unseeded.seed)


def test_prompts_together_are_prompts_alone(made: tuple[Any, Path], model: Generator) -> None:
    """Of different lengths, and finished at different times."""
    prompts = [PROMPT, "A", "The letter was written in London by", PROMPT]
    stop = model.generate(prompts[1], 40, **DRAWN)[3:5]
    for options in ({}, DRAWN, {**DRAWN, "stop": stop, "repetition_penalty": 1.2}):
        alone = [model.generate(prompt, 40, **options) for prompt in prompts]
        assert model.generate(prompts, 40, **options) == alone
        assert Generator.load(made[1], 3).generate([model.tokenize(p) for p in prompts[:3]], 40, **options) == alone[:3]
    assert len({len(text) for text in alone}) > 1
    with pytest.raises(ValueError, match="stream is True and there are several prompts"):
        model.generate(prompts, 4, stream=True)
    with pytest.raises(ValueError, match="together more than the context"):
        model.generate([PROMPT, PROMPT * 99], 4)


def test_what_prompts_begin_with_is_read_once(
    made: tuple[Any, Path], model: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call and in the next; the texts are those of a model that reads all."""
    system = "Answer as briefly as you can, and never with a question. " * 12
    prompts, fresh = [f"{system}{end}" for end in ("Who?", "When was it?", "", "Who?")], Generator.load(made[1], 1)
    alone = [Generator.load(made[1], 1).generate(prompt, 8, **DRAWN) for prompt in prompts]
    read, run = [0], fresh._engine.run

    def counted(sequences: Any, *arguments: Any, **options: Any) -> Any:
        read[0] += sum(len(ids) for ids in sequences)
        return run(sequences, *arguments, **options)

    monkeypatch.setattr(fresh._engine, "run", counted)
    for shared in (len(system), 0):
        read[0] = 0
        assert fresh.generate(prompts, 8, **DRAWN) == alone
        assert read[0] <= shared + 4 * 24
    assert fresh.generate(prompts[1], 8, **DRAWN) == alone[1]
    assert read[0] <= 5 * 24 + 4


def test_long_prompts_are_read_in_chunks(model: Generator) -> None:
    ids = np.random.default_rng(2).integers(4, BYTES, CHUNK + 70).tolist()
    stream = model.generate(ids, 3, stream=True)
    list(stream)
    expected = [*ids]
    for token in stream.ids:
        assert model.logits(expected)[-1].argmax() == token
        expected.append(token)


def test_texts_end_before_a_stop_string(model: Generator) -> None:
    text = model.generate(PROMPT, 40, **DRAWN)
    assert len(text) > 20
    for stop in (text[9:12], [text[9:12], text[5:7]], "never there", text[:1]):
        stops = [stop] if isinstance(stop, str) else stop
        end = min((text.index(s) for s in stops if s in text), default=len(text))
        stream = model.generate(PROMPT, 40, stop=stop, stream=True, **DRAWN)
        assert "".join(stream) == text[:end]
        assert stream.finish_reason == ("length" if end == len(text) else "stop")


@pytest.mark.parametrize("token", [2, 3])
def test_end_tokens_end_a_text(model: Generator, token: int) -> None:
    assert model.end_token_ids == (2, 3)
    stream = model.generate(PROMPT, 60, stream=True, logit_bias={token: 1000.0})
    assert list(stream) == []
    assert (stream.ids, stream.finish_reason) == ([], "stop")
    banned = model.generate(PROMPT, 60, stream=True, logit_bias={2: -1000.0, 3: -1000.0})
    assert len("".join(banned)) > 0
    assert len(banned.ids) == 60


def test_the_beginning_token_comes_once(model: Generator) -> None:
    assert model.tokenize("ab") == model.tokenize("<s>ab") == [1, *model.tokenize("ab")[1:]]
    assert model.tokenize("")[0] == 1


def test_characters_are_never_cut(tmp_path: Path) -> None:
    tokenizer = add_tokenizer(tmp_path)
    text = "naïve 漢字 🙂🙂 e\u0301 – ok"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    spelling = Spelling(tokenizer, tokenizer.encode("Say: ").ids)
    pieces = [spelling.add(token) for token in ids] + [spelling.rest()]
    assert "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    for cut in range(len(ids)):  # a prompt may end within a character
        spelling = Spelling(tokenizer, ids[:cut])
        rest = "".join([*(spelling.add(token) for token in ids[cut:]), spelling.rest()])
        assert text.endswith(rest)
        assert tokenizer.decode(ids[:cut]).rstrip("\N{REPLACEMENT CHARACTER}") + rest == text
    spelling = Spelling(tokenizer, [])
    assert "".join([*(spelling.add(token) for token in ids[:8]), spelling.rest()]) == tokenizer.decode(ids[:8])


def test_the_context_bounds_a_text(made: tuple[Any, Path]) -> None:
    model = Generator.load(made[1], context=32)
    assert (model.context, Generator.load(made[1]).context) == (32, 1024)
    count = len(prompt_ids(model))
    assert model.generate(PROMPT, 32 - count, seed=0, temperature=1.0)
    with pytest.raises(ValueError, match=f"prompt has {count} tokens and max_tokens is .*, together more than"):
        model.generate(PROMPT, 33 - count)
    assert pickle.loads(pickle.dumps(model)).context == 32
    for context in (0, 1025, 2.0):
        with pytest.raises(ValueError, match="it must be an integer in 1…1024, which the model was trained for"):
            pocketformer.load(made[1], context=context)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_keys_and_values_in_fp16(made: tuple[Any, Path], tmp_path: Path, weights: str) -> None:
    """The same text in every way of asking, nearer to fp32's than int8's are, in half of its memory."""
    exact, path = Generator.load(made[1]), made[1]
    if weights == "int8":
        path = tmp_path / "m.pocket"
        pocketformer.compress(made[1].parent, path, weights="int8", options=QuantizeOptions(random_tokens=0))
        exact = Generator.load(path, kv="fp32")
    models = [Generator.load(path, threads, context=700, kv="fp16") for threads in (1, 2)]
    prompts = ["Ada " * 60, PROMPT, "Ada " * 59 + "wrote"]
    texts = [models[0].generate(prompt, 30, seed=1, temperature=1.0) for prompt in prompts]
    assert models[1].generate(prompts, 30, seed=1, temperature=1.0) == texts
    for prompt, text in zip(prompts, texts, strict=True):
        assert "".join(models[1].generate(prompt, 30, seed=1, temperature=1.0, stream=True, lookup=3)) == text
    ids = np.random.default_rng(0).integers(4, BYTES, 300)
    expected, found, other = (m.logits(ids) for m in (exact, models[0], Generator.load(path)))
    bound = 0.8 * np.abs(other - expected).mean() if weights == "int8" else 1e-3 * np.abs(expected).mean()
    assert 0 < np.abs(found - expected).mean() < bound
    info, whole = models[0].info(), Generator.load(path, context=700, kv="fp32").info()
    assert (info["kv"], whole["kv"], Generator.load(path).info()["kv"]) == ("fp16", "fp32", weights)
    assert info["cache_bytes"] == models[0]._cache().nbytes == whole["cache_bytes"] / 2
    assert pickle.loads(pickle.dumps(models[0])).info()["kv"] == "fp16"


@pytest.mark.parametrize(
    ("kv", "message"), [("int8", "attention in fp32: use fp16, or"), ("bf16", "must be one of int8")]
)
def test_keys_that_a_file_cannot_have(made: tuple[Any, Path], tmp_path: Path, kv: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pocketformer.load(made[1], kv=kv)
    write_pocket(tmp_path / "m.pocket", pack_graph(tiny_graph()), MODEL, TEXT, None)
    with pytest.raises(ValueError, match="kv is 'fp16', but this model keeps no keys and values; leave it out"):
        pocketformer.load(tmp_path / "m.pocket", kv="fp16")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((PROMPT, 0), {}, "max_tokens is 0"),
        (([], 5), {}, "ids are float64 of shape"),
        (([BYTES], 5), {}, f"ids hold {BYTES}…{BYTES}; they must lie in 0…{BYTES - 1}"),
        ((PROMPT, 5), {"stop": ["a", ""]}, "stop is"),
        ((PROMPT, 5), {"temperature": -1.0}, "temperature is -1.0"),
        (("\ud83d", 5), {}, "prompt holds '.ud83d', half of a surrogate pair"),
    ],
)
def test_wrong_arguments(model: Generator, arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(*arguments, **options)


def test_defaults_are_the_checkpoints(made: tuple[Any, Path], tmp_path: Path) -> None:
    for file in made[1].parent.glob("*"):
        (tmp_path / file.name).symlink_to(file)
    settings = tmp_path / "generation_config.json"
    settings.unlink()
    settings.write_text(
        json.dumps({"eos_token_id": 2, "do_sample": True, "temperature": 1.3, "top_p": 0.95, "top_k": 0})
    )
    pocketformer.compress(tmp_path, tmp_path / "own.pocket", weights="fp32")
    model = Generator.load(tmp_path / "own.pocket")
    assert model.end_token_ids == (2,)
    assert model.generate(PROMPT, 40, seed=11, logit_bias={3: -99.0}) == Generator.load(made[1]).generate(
        PROMPT, 40, logit_bias={3: -99.0}, **DRAWN
    )
    settings.write_text(json.dumps({"do_sample": True}))
    assert model.generate(PROMPT, 9, temperature=0) == Generator.load(made[1]).generate(PROMPT, 9)


def test_threads_do_not_disturb_each_other(model: Generator) -> None:
    expected = {seed: model.generate(PROMPT, 30, temperature=1.0, seed=seed) for seed in range(8)}
    found: dict[int, str] = {}

    def work(seed: int) -> None:
        found[seed] = model.generate(PROMPT, 30, temperature=1.0, seed=seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_streams_that_are_dropped_leave_nothing(model: Generator) -> None:
    """Most of 100 are given up after a few pieces; nothing waits for the garbage collector."""

    def some(count: int) -> None:
        for seed in range(count):
            stream = model.generate(PROMPT, 200, stream=True, temperature=1.0, seed=seed)
            for _ in zip(range(seed % 4), stream, strict=False):
                pass
            if seed % 2:
                stream.close()

    gc.collect()
    gc.disable()
    try:
        some(20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        some(100)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2000  # KiB; a cache touches 100
    finally:
        gc.enable()


def test_other_tasks_are_told_apart(model: Generator, tmp_path: Path) -> None:
    other = tmp_path / "tiny.pocket"
    write_pocket(other, pack_graph(tiny_graph()), MODEL, TEXT, None)
    encoder: Any = pocketformer.load(other)
    with pytest.raises(TaskError, match=r"not 'generate'; use Model\.encode"):
        encoder.generate("a")
    with pytest.raises(TaskError, match=r"not 'embed'; use Model\.generate"):
        model.encode("a")
    with pytest.raises(ValueError, match="context is 8, but the task of"):
        pocketformer.load(other, context=8)
    assert repr(model).startswith("<pocketformer.Generator")
    assert model.task == "generate"


@pytest.mark.parametrize("values", [{"end_token_ids": [-1]}, {"sampling": {"top_k": "3"}}, {"sampling": {"x": 1}}])
def test_hostile_metadata(made: tuple[Any, Path], tmp_path: Path, values: dict[str, Any]) -> None:
    content = made[1].read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.loads(header["__metadata__"]["text"])
    header["__metadata__"]["text"] = json.dumps({**text, **values}, separators=(",", ":"))
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded = encoded.ljust(-(-(8 + len(encoded)) // 64) * 64 - 8)
    (tmp_path / "m.pocket").write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])
    with pytest.raises(PocketFileError, match="field"):
        pocketformer.load(tmp_path / "m.pocket")


def test_the_command(
    made: tuple[Any, Path], model: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = model.generate(PROMPT, 40, **DRAWN)
    arguments = ["generate", str(made[1]), PROMPT, "--max-tokens", "40", "--temperature", "1.3", "--top-p", "0.95"]
    assert main([*arguments, "--seed", "11"]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert main([*arguments, "--seed", "11", "--json", "--stop", text[6:9]]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["text"], result["finish_reason"]) == (text[: text.index(text[6:9])], "stop")
    assert (result["seed"], result["prompt_tokens"]) == (11, len(prompt_ids(model)))
    assert main([*arguments, "--context", "10"]) == 1
    assert "more than the context of 10" in capsys.readouterr().err
    assert main([*arguments, "--seed", "11", "--kv", "fp16"]) == 0
    halves = Generator.load(made[1], kv="fp16")
    assert capsys.readouterr().out == halves.generate(PROMPT, 40, **DRAWN) + "\n"
    assert main([*arguments, "--kv", "int8"]) == 1
    assert "has its attention in fp32" in capsys.readouterr().err
    text_file = tmp_path / "t.txt"
    text_file.write_text(PROMPT * 9)
    assert main(["perplexity", str(made[1]), str(text_file), "--kv", "fp16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] == halves.perplexity(PROMPT * 9).perplexity
    assert main(["info", str(made[1]), "--kv", "fp16"]) == 0
    memory = megabytes(halves.info()["cache_bytes"])
    assert f"fp16, {memory} for 1024 tokens" in capsys.readouterr().out


def test_sampling_is_documented_by_its_options() -> None:
    import inspect

    assert set(vars(Sampling())) <= set(inspect.signature(Generator.generate).parameters)


def test_config_without_a_generation_config(made: tuple[Any, Path], tmp_path: Path) -> None:
    build("qwen3", tmp_path, vocab_size=BYTES)
    change_config(tmp_path, eos_token_id=3)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    pocketformer.compress(tmp_path, tmp_path / "m.pocket", weights="fp32")
    model = Generator.load(tmp_path / "m.pocket")
    assert model.end_token_ids == (3,)
    stream = model.generate([5, 6, 7], 4, stream=True)  # without a tokenizer there are tokens, and no text
    assert "".join(stream) == ""
    assert len(stream.ids) <= 4
    with pytest.raises(ValueError, match="holds no tokenizer"):
        model.generate("a", 4)
