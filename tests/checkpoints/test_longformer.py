"""Longformer equals transformers at the edges of its windows and tiles and far beyond; small mistakes do not pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import pocketformer
from helpers.engines import ENGINES, native, native_packed
from helpers.kernels import aligned
from helpers.tokenizers import byte_pairs
from helpers.torch_models import HEADS, VOCAB, Inputs, deviation, make_adversarial, task_output
from pocketformer import _core
from pocketformer.compression import compress_checkpoint, compress_graph
from pocketformer.errors import CheckpointError
from pocketformer.graph import GLOBALS, Array, Graph
from pocketformer.sources.huggingface import Checkpoint, load_checkpoint

WINDOWS = (132, 6)  # 66 and 3 tokens to each side
LENGTHS = (1, 65, 66, 67, 68, 127, 128, 129, 511, 512, 513)
QUESTIONS = (1, 5, 65, 67, 20, 127, 100, 129, 200, 3, 131)  # tokens that are global
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 4100,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-2,
    "attention_window": list(WINDOWS),
    "pad_token_id": 1,
}
Case = tuple[Checkpoint, Inputs, Array]


def build(task: str, folder: Path, **options: Any) -> torch.nn.Module:
    config = transformers.LongformerConfig(**{**SIZES, "num_labels": 2 if task == "answer" else 5, **options})
    model = getattr(transformers, f"Longformer{HEADS[task]}")(config).eval()
    make_adversarial(model, 3)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def expected(model: torch.nn.Module, inputs: Inputs, task: str, counts: tuple[int, ...] | None = None) -> Array:
    """Each sequence alone; the first ``counts`` of its tokens are global, or what the class takes by default."""
    results = []
    for i, ids in enumerate(inputs.split(inputs.ids)):
        types = torch.tensor(inputs.split(inputs.types)[i])[None]
        arguments = {"input_ids": torch.tensor(ids)[None], "token_type_ids": types}
        if counts is not None:
            arguments["global_attention_mask"] = (torch.arange(len(ids)) < counts[i]).long()[None]
        results.append(task_output(model(**arguments), task))
    return torch.cat(results).numpy()


@pytest.mark.parametrize("task", HEADS)
def test_parity_at_the_edges_of_windows_and_tiles(tmp_path: Path, task: str) -> None:
    """Every head as transformers has it by default, for questions of many lengths."""
    model = build(task, tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.model["family"], checkpoint.model["task"]) == ("longformer", task)
    graph = checkpoint.graph
    assert graph.max_length == 4098
    inputs = Inputs.random(LENGTHS, 2)
    counts = QUESTIONS if task == "answer" else None
    given = {GLOBALS: np.array(counts)} if counts else None
    rows = np.arange(0, sum(LENGTHS), 7) if task == "fill_mask" else None
    wanted = expected(model, inputs, task, counts)
    wanted = wanted if rows is None else wanted[rows]
    for engine in ENGINES.values():
        actual = engine(graph, inputs.ids, inputs.lengths, inputs.types, rows, given)
        assert deviation(actual, wanted) <= 1


def test_parity_of_a_whole_document(tmp_path: Path) -> None:
    model = build("answer", tmp_path)
    inputs = Inputs.random((4096,), 2)
    graph = load_checkpoint(tmp_path).graph
    actual = native(graph, inputs.ids, inputs.lengths, inputs.types, counts={GLOBALS: np.array([30])})
    assert deviation(actual, expected(model, inputs, "answer", (30,))) <= 1


def test_the_question_ends_where_transformers_ends_it(tmp_path: Path) -> None:
    """Before the first of the three separators, which it looks for itself."""
    model = build("answer", tmp_path, sep_token_id=2)
    ids = np.array([0, *range(5, 17), 2, 2, *range(20, 160), 2])
    inputs = Inputs(ids, np.zeros_like(ids), (len(ids),))
    graph = load_checkpoint(tmp_path).graph
    actual = native(graph, ids, inputs.lengths, inputs.types, counts={GLOBALS: np.array([13])})
    assert deviation(actual, expected(model, inputs, "answer")) <= 1


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("longformer")
    model = build("answer", folder)
    inputs = Inputs.random(LENGTHS, 2)
    return load_checkpoint(folder), inputs, expected(model, inputs, "answer", QUESTIONS)


def _attention(graph: Graph, change: Callable[[dict[str, Any]], None]) -> None:
    for op in graph.ops:
        if op["op"] == "attention":
            change(op)


MUTATIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "one key more to the left": lambda op: op.update(left=op["left"] + 1),
    "one key less to the right": lambda op: op.update(right=op["right"] - 1),
    "no windows": lambda op: op.update(left=-1, right=-1),
    "one global row more": lambda op: op.update(globals=1),
    "no global rows": lambda op: [op.pop(name) for name in ("more_globals", "global_q", "global_state")],
    "global rows with the queries of the others": lambda op: op.pop("global_q"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_break_parity(case: Case, mutation: str) -> None:
    checkpoint, inputs, wanted = case
    graph = copy.deepcopy(checkpoint.graph)
    _attention(graph, MUTATIONS[mutation])
    if mutation == "no global rows":
        graph.inputs = [entry for entry in graph.inputs if entry["name"] != GLOBALS]
        used = {op["state"] for op in graph.ops if op["op"] == "attention"}
        graph.ops = [op for op in graph.ops if op["op"] != "store" or op["state"] in used]
        graph.states = [state for state in graph.states if state["name"] in used]
    counts = {GLOBALS: np.array(QUESTIONS)} if graph.find_input(GLOBALS) else None
    actual = native(graph, inputs.ids, inputs.lengths, inputs.types, counts=counts)
    assert deviation(actual, wanted) > 1


def test_int8_is_near_and_the_same_bytes_everywhere(case: Case) -> None:
    """On every ISA, with any number of threads, alone and in a batch; and near the interpreter of what is rounded."""
    checkpoint, inputs, _ = case
    given = {GLOBALS: np.array(QUESTIONS)}
    exact = native(checkpoint.graph, inputs.ids, inputs.lengths, inputs.types, counts=given)
    packed, _ = compress_graph(checkpoint.graph)
    packed.params = {name: aligned(array) for name, array in packed.params.items()}
    result = native_packed(packed, inputs.ids, inputs.lengths, inputs.types, counts=given)
    cosine = (result * exact).sum() / np.linalg.norm(result) / np.linalg.norm(exact)
    assert cosine > 0.999
    near = ENGINES["reference"](packed, inputs.ids, inputs.lengths, inputs.types, None, given)
    assert np.abs(result - near).max() < 0.05 * np.abs(near).max()
    feeds = {"ids": inputs.ids.astype(np.int32), "types": inputs.types.astype(np.int32)}
    feeds |= {"tokens": np.concatenate([[0], np.cumsum(LENGTHS)]), GLOBALS: np.array(QUESTIONS, np.int32)}
    for isa in _core.isas():
        for threads, mode, block in ((1, "rows", 0), (3, "columns", 0), (2, "rows", 37)):
            session = _core.Session(_core.Program(packed.description(), packed.params, isa), mode, block)
            assert session.run(feeds, threads).tobytes() == result.tobytes(), (isa, threads, mode)
    begin = sum(LENGTHS[:-1])
    alone = native_packed(
        packed, inputs.ids[begin:], LENGTHS[-1:], inputs.types[begin:], counts={GLOBALS: np.array(QUESTIONS[-1:])}
    )
    assert alone.tobytes() == result[begin:].tobytes()


@pytest.mark.parametrize("window", [7, 0, [132], [132, 6, 6], "all", [132, 6.0]])
def test_a_window_that_is_none_is_refused(tmp_path: Path, window: Any) -> None:
    build("embed", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_window": window}))
    with pytest.raises(CheckpointError, match=r"'attention_window' is .*even number.* 2 layers"):
        load_checkpoint(tmp_path)


def test_one_window_for_all_layers_and_no_projections_that_nobody_needs(tmp_path: Path) -> None:
    build("tag", tmp_path, attention_window=8)
    graph = load_checkpoint(tmp_path).graph
    assert [(op["left"], op["right"]) for op in graph.ops if op["op"] == "attention"] == [(4, 4)] * 2
    assert not any("global" in name for name in graph.params)


def test_a_reader_makes_its_questions_global(tmp_path: Path) -> None:
    """Answers have the scores of torch's logits, of a class that looks for the question itself."""
    tokenizer = byte_pairs()
    size, sep = max(VOCAB, tokenizer.get_vocab_size()), tokenizer.token_to_id("</s>")
    model = build("answer", tmp_path, vocab_size=size, sep_token_id=sep)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1000}))
    compress_checkpoint(load_checkpoint(tmp_path), tmp_path / "reader.pocket", "fp32")
    question, context = "Who lives in Paris?", "Ada lives in London, and Babbage (a letter) in Paris. " * 6
    encoding = tokenizer.encode(question, context)
    with torch.no_grad():
        out = model(torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids]))
    kept = [i for i, s in enumerate(encoding.sequence_ids) if s == 1 or i in (0, len(encoding.ids) - 1)]
    starts, ends = (logits[0][kept].softmax(0) for logits in (out.start_logits, out.end_logits))
    scores = (starts[1:-1, None] * ends[1:-1]).triu().tril(14)
    found = pocketformer.load(tmp_path / "reader.pocket").answer(question, context)
    assert found[0].score == pytest.approx(float(scores.max()), rel=1e-3)
