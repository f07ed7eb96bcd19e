"""Nyströmformer equals transformers, full and by landmarks, padded texts included; small mistakes do not pass."""

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

from helpers.engines import ENGINES, native, native_packed
from helpers.kernels import aligned
from helpers.torch_models import HEADS, VOCAB, Inputs, deviation, make_adversarial, task_output
from pocketformer import _core
from pocketformer.compression import compress_graph
from pocketformer.errors import UnsupportedModelError
from pocketformer.graph import Array, Graph
from pocketformer.sources.huggingface import load_checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 130,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-2,
    "conv_kernel_size": 5,
    "num_landmarks": 8,
    "segment_means_seq_len": 96,
}
LENGTHS = (1, 11, 12, 13, 64, 85, 95, 96)
"""Those about the ends of parts of 12 tokens, and all of a text."""
FULL = {"segment_means_seq_len": 8}
FULL_LENGTHS = (1, 7, 64, 129, 130)
Made = tuple[Graph, Inputs, Array]


def build(task: str, folder: Path, **options: Any) -> torch.nn.Module:
    labels = 2 if task == "answer" else 5
    config = transformers.NystromformerConfig(**{**SIZES, "num_labels": labels, **options})
    model = getattr(transformers, f"Nystromformer{HEADS[task]}")(config).eval()
    make_adversarial(model, 5)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def expected(model: torch.nn.Module, inputs: Inputs, task: str) -> Array:
    """Each sequence alone, and where landmarks ask for it padded to the one length that transformers takes.

    A mask of one row, which is all that landmarks can take, it leaves as it is.
    """
    config, results = model.config, []
    for ids, types in zip(inputs.split(inputs.ids), inputs.split(inputs.types), strict=True):
        length, count = config.segment_means_seq_len, len(ids)
        padded = max(length // config.num_landmarks * config.num_landmarks, count)
        padded = count if length == config.num_landmarks else padded
        more = (0, padded - count)
        out = model(
            torch.tensor(np.pad(ids, more, constant_values=config.pad_token_id))[None],
            token_type_ids=torch.tensor(np.pad(types, more))[None],
            attention_mask=torch.where(torch.arange(padded) < count, 0.0, torch.finfo().min)[None, None, None],
        )
        for name in ("last_hidden_state", "logits", "start_logits", "end_logits"):
            if name in out and (task != "classify"):
                out[name] = out[name][:, :count]
        results.append(task_output(out, task))
    return torch.cat(results).numpy()


@pytest.mark.parametrize(
    ("task", "options"),
    [*((task, {}) for task in HEADS), ("tag", FULL), ("tag", {"num_landmarks": 10})],
)
def test_parity(tmp_path: Path, task: str, options: dict[str, Any]) -> None:
    """Of 96 tokens in parts of 10 transformers takes texts of 90."""
    model = build(task, tmp_path, **options)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.model["family"], checkpoint.model["task"]) == ("nystromformer", task)
    lengths = {8: LENGTHS, 10: (1, 8, 9, 10, 89, 90)}[options.get("num_landmarks", 8)]
    lengths = FULL_LENGTHS if options == FULL else lengths
    assert checkpoint.graph.max_length == lengths[-1]
    inputs = Inputs.random(lengths, 2)
    rows = np.arange(0, sum(lengths), 7) if task == "fill_mask" else None
    wanted = expected(model, inputs, task)
    wanted = wanted if rows is None else wanted[rows]
    for name, engine in ENGINES.items():
        actual = engine(checkpoint.graph, inputs.ids, inputs.lengths, inputs.types, rows)
        assert deviation(actual, wanted) <= 1, name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("nystromformer")
    model = build("tag", folder)
    inputs = Inputs.random(LENGTHS, 2)
    return load_checkpoint(folder).graph, inputs, expected(model, inputs, "tag")


def _change(op: str, **fields: Any) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        for entry in graph.ops:
            if entry["op"] == op:
                entry.update(fields)

    return change


def _roll(name: str) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        graph.params[name] = np.roll(graph.params[name], 1, axis=0)

    return change


MUTATIONS: dict[str, Callable[[Graph], None]] = {
    "one iteration more": _change("nystrom", iterations=7),
    "landmarks of the first token of a part": _change("pool", kind="cls"),
    "another scale of landmarks": _change("nystrom", scale=0.3),
    "the convolution shifted": _roll("layers.1.convolution"),
    "other padding": lambda graph: graph.params.update({"embed.padding": graph.params["embed.words.weight"][2]}),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_break_parity(made: Made, mutation: str) -> None:
    graph = copy.deepcopy(made[0])
    MUTATIONS[mutation](graph)
    assert deviation(native(graph, made[1].ids, made[1].lengths, made[1].types), made[2]) > 1


@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])
def test_the_same_bytes_everywhere(made: Made, int8: bool) -> None:
    """On every ISA, with any number of threads, alone and in a batch; int8 near fp32."""
    graph, inputs, wanted = made
    packed, _ = compress_graph(graph, "int8" if int8 else "fp32")
    packed.params = {name: aligned(array) for name, array in packed.params.items()}
    result = native_packed(packed, inputs.ids, inputs.lengths, inputs.types)
    cosine = (result * wanted).sum() / np.linalg.norm(result) / np.linalg.norm(wanted)
    assert cosine > (0.998 if int8 else 0.999999), cosine
    feeds = {"ids": inputs.ids.astype(np.int32), "types": inputs.types.astype(np.int32)}
    feeds["tokens"] = np.concatenate([[0], np.cumsum(LENGTHS)])
    for isa in _core.isas():
        for threads, mode, block in ((1, "rows", 0), (3, "columns", 0), (2, "rows", 37)):
            session = _core.Session(_core.Program(packed.description(), packed.params, isa), mode, block)
            assert session.run(feeds, threads).tobytes() == result.tobytes(), (isa, threads, mode)
    begin = sum(LENGTHS[:5])
    part = slice(begin, begin + LENGTHS[5])
    alone = native_packed(packed, inputs.ids[part], LENGTHS[5:6], inputs.types[part])
    assert alone.tobytes() == result[part].tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv_kernel_size": 64}, "'conv_kernel_size' is 64; it must be odd"),
        ({"inv_coeff_init_option": True}, "'inv_coeff_init_option' is True"),
        ({"num_landmarks": 97}, "'num_landmarks' is 97"),
        (
            {"segment_means_seq_len": 4096, "num_landmarks": 64},
            "'segment_means_seq_len' is 4096; texts are padded to it",
        ),
        ({"hidden_size": 60}, "'hidden_size' is 60; it must be a multiple of 16"),
        ({"is_decoder": True}, "'is_decoder' is True"),
    ],
)
def test_what_is_not_honoured_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    build("embed", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UnsupportedModelError, match=words):
        load_checkpoint(tmp_path)
