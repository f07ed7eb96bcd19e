"""Conversations: prompts are those of transformers, templates stay in their sandbox, and turns are read once."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import pocketformer
from helpers.torch_decoders import BYTES, add_tokenizer, build
from pocketformer.cli import main
from pocketformer.engine import Engine
from pocketformer.tasks.chat import render
from pocketformer.tasks.generate import Generator

CHATML = (
    "{{ bos_token }}{% for m in messages %}\n    {%- if m['role'] == 'tool' %}{% continue %}{% endif %}\n"
    "{{ '<|' + m['role'] + '|>' + m['content'] | trim }}"
    "{% if m.role == 'assistant' %}{% generation %}!{% endgeneration %}{{ eos_token }}{% endif %}\n{% endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS = (
    "{{ messages | tojson(indent=2) }}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
)
MESSAGES = [
    {"role": "system", "content": " Be brief: é <b>. "},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Who?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat")
    build("gemma3_text", path, vocab_size=BYTES, max_position_embeddings=1024)
    add_tokenizer(path)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
    }
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHATML}))
    pocketformer.compress(path, path / "m.pocket", weights="fp32")
    return path


@pytest.fixture
def model(folder: Path) -> Generator:
    return Generator.load(folder / "m.pocket", 1)


@pytest.mark.parametrize("template", [CHATML, TOOLS])
def test_prompts_are_transformers(folder: Path, template: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(
        MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert render(template, MESSAGES, {"bos_token": "<s>", "eos_token": "</s>"}) == expected


def test_the_beginning_token_comes_from_the_template(folder: Path, model: Generator) -> None:
    ids = model.chat_ids(MESSAGES)
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 1, 1)
    text = model.chat(MESSAGES, 20, seed=3, temperature=1.0)
    assert text == model.generate(ids, 20, seed=3, temperature=1.0)
    assert text == "".join(model.chat(MESSAGES, 20, seed=3, temperature=1.0, stream=True))


def test_turns_are_read_once_and_read_the_same(folder: Path, model: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two prompts share is not read again; the bytes do not depend on it."""
    read: list[int] = []
    run = model._engine.run

    def counted(sequences: Any, *arguments: Any, **options: Any) -> Any:
        read.append(sum(len(ids) for ids in sequences))
        return run(sequences, *arguments, **options)

    monkeypatch.setattr(model._engine, "run", counted)
    turns = [MESSAGES[:2], MESSAGES, MESSAGES[:2], [{"role": "user", "content": "Other"}]]
    lengths = [len(model.chat_ids(turn)) for turn in turns]
    for turn, length in zip(turns, lengths, strict=True):
        read.clear()
        text = model.chat(turn, 9, seed=1, temperature=1.0)
        assert text == Generator.load(folder / "m.pocket", 1).chat(turn, 9, seed=1, temperature=1.0)
        if turn is MESSAGES:
            assert read[0] <= length - lengths[0] + len("<|assistant|>")
    assert read[0] > lengths[3] - 6  # only what every conversation begins with


def test_windows_that_have_moved_on_are_read_again(model: Generator, folder: Path) -> None:
    """Beyond a window's memory a shared prefix cannot be taken up; the text is the same."""
    ids = np.random.default_rng(0).integers(4, BYTES, 900).tolist()
    model.generate(ids, 100, seed=0, temperature=1.0)
    again = model.generate(ids[:30], 9, seed=0, temperature=1.0)
    assert again == Generator.load(folder / "m.pocket", 1).generate(ids[:30], 9, seed=0, temperature=1.0)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(100001) %}{{ i }}{% endfor %}",
        "{{ raise_exception('no system role') }}",
        "{% include '/etc/passwd' %}",
        "{% for m in messages %}",
        "{{ undefined_thing() }}",
        "{{ messages + 1 }}",
        "{{ 1 / 0 }}",
    ],
)
def test_templates_cannot_leave_their_sandbox(template: str) -> None:
    with pytest.raises(ValueError, match="the chat template refuses these messages"):
        render(template, MESSAGES, {})


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "messages is 'hello'; it must be a list"),
        ([], "messages is"),
        ([{"role": "user"}], r"messages\[0\] is"),
        ([MESSAGES[0], "x"], r"messages\[1\] is 'x'; it must have 'role' and 'content'"),
        ([{"role": "user", "content": "\ud83d"}], "half of a surrogate pair"),
    ],
)
def test_wrong_messages(model: Generator, messages: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model.chat(messages)


def test_without_a_template(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = tmp_path / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    settings.unlink()
    settings.write_text(json.dumps({**values, "chat_template": None}))
    pocketformer.compress(tmp_path, tmp_path / "own.pocket", weights="fp32")
    with pytest.raises(ValueError, match="has no chat template: use generate"):
        Generator.load(tmp_path / "own.pocket").chat(MESSAGES)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    pocketformer.compress(tmp_path, tmp_path / "own.pocket", weights="fp32")
    assert len(Generator.load(tmp_path / "own.pocket").chat_ids(MESSAGES)) == len(" Be brief: é <b>. ".encode())


def test_the_command(folder: Path, model: Generator, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(text: str, *options: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        arguments = ["chat", str(folder / "m.pocket"), "--max-tokens", "9", "--seed", "4", "--temperature", "1.0"]
        assert main([*arguments, *options]) == 0
        return str(capsys.readouterr().out)

    user = {"role": "user", "content": "Hello"}
    first = model.chat([user], 9, seed=4, temperature=1.0)
    result = json.loads(talk("Hello\n", "--json"))
    assert (result["text"], result["message"]) == (first, "Hello")
    second = [user, {"role": "assistant", "content": first}, {"role": "user", "content": "Who?"}]
    expected = first + model.chat(second, 9, seed=4, temperature=1.0)
    assert talk("Hello\nWho?\n/exit\nnever read") == expected
    assert talk("Hello\n\n/reset\nHello") == first * 2
    assert json.loads(talk("Hello", "--json", "--system", "Be brief"))["text"] == model.chat(
        [{"role": "system", "content": "Be brief"}, user], 9, seed=4, temperature=1.0
    )


def test_a_conversation_is_saved(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "with blank.json"
    lines = ["Hello", "/save", f"/save {tmp_path}/no/such", f"/save {saved}", "/saved"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    arguments = ["chat", str(folder / "m.pocket"), "--max-tokens", "4", "--seed", "4", "--system", "é"]
    assert main(arguments) == 0
    found = json.loads(saved.read_text(encoding="utf-8"))
    assert [message["role"] for message in found] == ["system", "user", "assistant"]
    assert [message["content"] for message in found[:2]] == ["é", "Hello"]
    output = capsys.readouterr()
    assert found[2]["content"] in output.out
    assert "say where: /save FILE" in output.err
    assert "nothing was saved" in output.err
    assert f"3 messages saved to {saved}" in output.err
    assert output.err.count("a second") == 2  # "/saved" is a message


def test_an_interrupt_ends_the_answer_alone(
    folder: Path, model: Generator, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the fourth run; the next answer is to the conversation with what was said."""
    saved, runs, run = tmp_path / "c.json", [0], Engine.run

    def interrupted(*arguments: Any, **options: Any) -> Any:
        runs[0] += 1
        if runs[0] == 4:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    monkeypatch.setattr(Engine, "run", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Hello\nWho?\n/save {saved}"))
    arguments = ["chat", str(folder / "m.pocket"), "--max-tokens", "9", "--seed", "4", "--temperature", "1.0"]
    assert main(arguments) == 0
    assert "a second, stopped]" in capsys.readouterr().err
    messages = json.loads(saved.read_text())
    assert model.chat(messages[:1], 9, seed=4, temperature=1.0).startswith(messages[1]["content"])
    assert messages[3]["content"] == model.chat(messages[:3], 9, seed=4, temperature=1.0)
    runs[0] = 0
    assert main(["generate", str(folder / "m.pocket"), "Hello", "--max-tokens", "9"]) == 130
