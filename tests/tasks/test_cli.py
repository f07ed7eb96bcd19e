"""Each subcommand for people and for machines, and one clear line for each mistake."""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import pocketformer
from helpers.models import model_folder
from helpers.task_models import labelled, make
from pocketformer import _core
from pocketformer.cli import COMMANDS, main
from pocketformer.commands import options
from pocketformer.commands.run import AGGREGATIONS
from pocketformer.demo_texts import SENTENCES
from pocketformer.pocketfile import read_pocket
from pocketformer.tasks.tag import Aggregation


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must succeed; returns what it printed, parsed when it was asked for JSON."""

    def call(*arguments: object) -> Any:
        code = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert code == 0, output.err
        return json.loads(output.out) if "--json" in arguments else output.out

    return call


def test_compress(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.pocket"
    result = run("compress", model_folder("minilm"), "-o", path, "--weights", "fp32", "--json")
    assert result["file_bytes"] == path.stat().st_size
    assert "embed.words.weight" in {tensor["name"] for tensor in result["tensors"]}
    assert str(path) in run("compress", model_folder("minilm"), "-o", path, "--weights", "fp32")


def test_compress_to_few_bits(run: Any, tmp_path: Path) -> None:
    folder = make("embed", tmp_path).folder
    texts, path, seen = tmp_path / "texts.txt", tmp_path / "m.pocket", tmp_path / "seen.npz"
    texts.write_text("ada lives in london\nwho wrote the first program\twhere is a letter\n" * 30)
    precision = ["--precision", "layers.*.qkv=4", "--precision", "layers.1.*=8", "--precision", "layers.0.ffn_up=32"]
    calibration = ["--calibration", texts, "--save-profile", seen]
    run("compress", folder, "-o", path, "--weights", "int4", "--table-bits", "5", *precision, *calibration)
    weights = read_pocket(path).graph.weights
    formats = {name: (facts["format"], facts.get("group", 0)) for name, facts in weights.items()}
    assert formats["embed.words"] == ("i5", 0)
    assert formats["layers.0.qkv"] == ("i4", 0)
    assert formats["layers.1.qkv"] == ("i8", 0)
    assert formats["layers.0.ffn_up"] == ("f32", 0)
    assert pocketformer.load(path).encode(["ada"]).shape[0] == 1
    run("compress", folder, "-o", path, "--calibration", seen)
    assert read_pocket(path).graph.weights["layers.0.ffn_up"]["format"] == "i8"


def test_encode(run: Any, minilm_int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pocketformer.load(minilm_int8).encode(["a cat", "rain"])
    result = run("encode", minilm_int8, "a cat", "rain", "--json", "--threads", "1")
    assert np.array([entry["embedding"] for entry in result["results"]], np.float32).tobytes() == expected.tobytes()
    output, texts = tmp_path / "rows", tmp_path / "texts.txt"
    texts.write_text("a cat\nrain\n")
    assert "[2, 384]" in run("encode", minilm_int8, "--input", texts, "-o", output)
    assert np.load(output).tobytes() == expected.tobytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a cat\nrain\n")))
    assert run("encode", minilm_int8, "--json") == result
    assert run("encode", minilm_int8, "a cat", "--json", "rain") == result  # options between the texts
    assert "a cat" in run("encode", minilm_int8, "a cat")


@pytest.mark.parametrize(
    ("task", "arguments", "key", "columns"),
    [
        ("embed", ["ada"], "embedding", "first values"),
        ("classify", ["ada", "--top-k", "2"], "labels", "label"),
        ("tag", ["ada lives in london"], "entities", "characters"),
        ("classify", ["ada", "--pair", "london"], "labels", "label"),
        ("tag", ["ada lives in london", "--aggregation", "none"], "entities", "characters"),
        ("answer", ["ada lives in london", "--question", "who"], "answers", "answer"),
        ("answer", ["ada lives in london", "--question", "who", "--allow-empty"], "answers", "answer"),
        ("fill_mask", ["ada [MASK] in london", "--top-k", "2"], "masks", "mask 1"),
    ],
)
def test_run(run: Any, tmp_path: Path, task: str, arguments: list[str], key: str, columns: str) -> None:
    pocket = make(task, tmp_path).pocket
    result = run("run", pocket, *arguments, "--json")
    assert result["task"] == task
    assert key in result["results"][0]
    if "--top-k" in arguments:
        assert len(result["results"][0][key] if task == "classify" else result["results"][0][key][0]) == 2
    assert columns in run("run", pocket, *arguments)


def test_rank_and_any_labels(run: Any, tmp_path: Path) -> None:
    ranker, inference = tmp_path / "rank", tmp_path / "inference"
    for folder in (ranker, inference):
        folder.mkdir()
    pocket = make("classify", ranker, **labelled(["LABEL_0"])).pocket
    texts = ["ada wrote the letter", "paris", "a program"]
    hits = pocketformer.load(pocket).rank("who", texts, 2)
    result = run("run", pocket, *texts, "--query", "who", "--top-k", "2", "--json")
    assert [(found["index"], found["text"], found["score"]) for found in result["results"]] == [
        (i, texts[i], score) for i, score in hits
    ]
    assert "score" in run("run", pocket, *texts, "--query", "who")
    pocket = make("classify", inference, **labelled(["entailment", "neutral", "contradiction"])).pocket
    result = run("run", pocket, "ada", "--labels", "paris", "letter", "--json")
    assert {label["label"] for label in result["results"][0]["labels"]} == {"paris", "letter"}


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\u2028b\nc\n", ["a\u2028b", "c"]),
        ("a\x0bb\x0cc\x1cd\x1ee\x85f\n", ["a\x0bb\x0cc\x1cd\x1ee\x85f"]),
        ("a\rb\r\n\r\nc", ["a\rb", "", "c"]),
        ("\ufeffa\n\ufeffb\n", ["a", "\ufeffb"]),
        ("\n\n", ["", ""]),
    ],
)
def test_only_newline_ends_a_line(content: str, lines: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content.encode())
    assert options.read_texts(argparse.Namespace(texts=[], input=str(path))) == lines
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert options.read_texts(argparse.Namespace(texts=[], input=None)) == lines


def test_lines_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"hello\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"texts\.txt, line 2 is not UTF-8 \(byte 0xe9\)"):
        options.read_texts(argparse.Namespace(texts=[], input=str(path)))


def test_argument_that_is_not_utf8(minilm_int8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", str(minilm_int8), "fine", "caf\udce9"]) == 1  # as Python decodes such a byte
    assert "texts[1] holds '\\udce9'" in capsys.readouterr().err


def test_encode_with_a_prompt(run: Any, tmp_path: Path) -> None:
    pocket = make("embed", tmp_path, text={"prompts": {"query": "who is "}}).pocket
    (result,) = run("encode", pocket, "ada", "--prompt", "query", "--json")["results"]
    assert result["embedding"] == pocketformer.load(pocket).encode("who is ada").tolist()


def test_info_shows_licence_and_source(run: Any, tmp_path: Path) -> None:
    pocket = make("embed", tmp_path, model={"license": "mit", "source": "org/tiny"}).pocket
    text = run("info", pocket)
    assert re.search(r"^source +org/tiny$", text, re.MULTILINE)
    assert re.search(r"^license +mit$", text, re.MULTILINE)


def test_aggregations() -> None:
    assert get_args(Aggregation) == AGGREGATIONS


def test_info(run: Any, minilm_int8: Path) -> None:
    model = pocketformer.load(minilm_int8)
    result = run("info", minilm_int8, "--lengths", 16, 512, "--machine", "--json")
    assert result["model"] == model.info()
    assert result["plan"] == [{"length": n, "bytes": model.plan([n])} for n in (16, 512)]
    assert result["machine"]["isa"] == model.info()["isa"]
    text = run("info", minilm_int8, "--machine")
    assert "22,565,376" in text
    assert "instruction sets" in text


def test_bench(run: Any, minilm_int8: Path) -> None:
    options = ("--lengths", 16, 9999, "--batches", 1, 2, "--threads", 1, "--seconds", 0.01)
    result = run("bench", minilm_int8, *options, "--json")
    assert [(row["batch"], row["length"]) for row in result["runs"]] == [(1, 16), (2, 16)]
    for row in result["runs"]:
        assert 0 < row["best"] <= row["median"]
        assert 0 < row["peak_share"] <= row["roofline_share"] < 1.5
    assert 30e6 < result["peak_rss_bytes"] < 80e6
    assert "tokens/s" in run("bench", minilm_int8, *options)


def test_bench_peak(run: Any) -> None:
    result = run("bench", "--peak", "--threads", 1, 2, "--seconds", 0.01, "--json")
    assert [row["threads"] for row in result["peaks"]] == [1, 2]
    assert [row["isa"] for row in result["isas"]] == _core.isas()
    assert min(row[key] for row in result["peaks"] for key in ("int8_gmacs", "fp32_gmacs", "read_gbps")) > 0.1
    assert result["isas"][0]["int8_gmacs"] > result["isas"][-1]["int8_gmacs"]  # the best table first, scalar last
    assert "memory read" in run("bench", "--peak", "--threads", 1, "--seconds", 0.01)


@pytest.mark.slow
def test_demo(run: Any) -> None:
    result = run("demo", "--query", "kitten", "--json")
    assert result["searches"][0]["hits"][0]["text"] == "The kitten fell asleep on the keyboard."
    assert result["cosine_min"] > 0.998
    assert result["int8_bytes"] * 3.5 < result["fp32_bytes"]


def test_demo_answers_its_own_queries(minilm_int8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pocketformer.commands import demo
    from pocketformer.demo_texts import QUERIES

    model = pocketformer.load(minilm_int8)
    scores = model.encode(QUERIES) @ model.encode(SENTENCES).T
    best = [SENTENCES[i] for i in scores.argmax(1)]
    assert "water" in best[0]
    assert "Bats" in best[1]
    assert "RAM" in best[2]
    demo.show(
        {
            "file": "f",
            "compress_seconds": 1.0,
            "fp32_bytes": 4e6,
            "int8_bytes": 1e6,
            "fp32_seconds_per_sentence": 2e-3,
            "int8_seconds_per_sentence": 1e-3,
            "cosine_mean": 0.9997,
            "cosine_min": 0.9991,
            "isa": "avx2",
            "threads": 2,
            "searches": [{"query": "q", "hits": [{"score": 0.5, "text": best[0]}]}],
        }
    )
    output = capsys.readouterr().out
    assert "4.0× smaller" in output
    assert "████████████ " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.pocket", "text"], "nowhere.pocket: No such file or directory"),
        (["encode", __file__, "text"], "compress the model again"),
        (["compress", "nowhere", "-o", "x.pocket"], "nowhere is not a folder"),
        (["info"], "name a pocket file"),
        (["encode", "MODEL", "text", "--input", "file"], "one of the two"),
        (["encode", "MODEL", "--input", "/nowhere.txt"], "/nowhere.txt: No such file"),
        (["encode", "MODEL", "--input", "/dev/null"], "the input is empty"),
        (["run", "MODEL", "text", "--question", "why"], "task is 'embed'"),
        (["run", "MODEL", "text", "--allow-empty"], "--allow-empty was given, but the model's task is 'embed'"),
        (["bench"], "there is nothing to measure; give a pocket file, --peak"),
        (["bench", "MODEL", "--lengths", "9999"], "all lengths are above 512"),
        (["info", "MODEL", "--lengths", "513"], "513"),
    ],
)
def test_mistakes(arguments: list[str], message: str, minilm_int8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(minilm_int8) if argument == "MODEL" else argument for argument in arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("pocketformer: error: ")
    assert message in output.err


def test_wrong_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pocket = str(make("tag", tmp_path).pocket)
    assert main(["encode", pocket, "text"]) == 1
    assert "use Model.tag" in capsys.readouterr().err


COMPRESS = ["compress", "x", "-o", "y"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "x", "--threads", "0"],
        ["nothing"],
        ["compress", "x"],
        [*COMPRESS, "--table-bits", "9"],
        [*COMPRESS, "--precision", "a"],
        ["encode", "x", "--jso", "n", "--no"],
    ],
)
def test_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


def test_truncation_is_a_plain_line(run: Any, minilm_int8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", str(minilm_int8), "cat " * 300]) == 0
    assert capsys.readouterr().err.startswith("pocketformer: warning: 1 of 1 texts")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert re.search(rf"^example:\n  pocketformer {command}\b", capsys.readouterr().out, re.MULTILINE)


def test_plain_tables_without_rich(minilm_int8: Path) -> None:
    program = "import sys; sys.modules['rich'] = None; from pocketformer.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "info", str(minilm_int8)]
    assert "parameters" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_closed_pipe(minilm_int8: Path) -> None:
    command = f"{sys.executable} -m pocketformer encode {minilm_int8} --json a b c | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "{"
    assert done.stderr == ""
